"""Commands given together take effect in their order."""

import torch

from optwatch.wire.messages import Prepare
from optwatch_agent.actuators import Actuators
from optwatch_agent.control import Control
from optwatch_agent.identity import identify
from optwatch_agent.membership import Membership


def prepare(order: int, action: str, **args: float) -> Prepare:
    return Prepare(
        session="s",
        command=str(order),
        vote=str(order),
        n=1,
        steps=(10,),
        order=order,
        action=action,
        args=args,
    )


def test_a_restart_never_overtakes_the_cut_that_was_ordered_before_it() -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    alone = Membership(identify("order"), None)
    control = Control("s", ("restart", "scale_lr"), [Actuators(optimizer)], alone, strict=False)
    control.take(prepare(1, "scale_lr", factor=0.1))
    control.take(prepare(2, "restart"))
    seen = []
    for step in (10, 11):
        control.apply_due(0, step)
        seen.append([(o.prepare.command, o.steps) for o in control.outcomes if o.state == "applied"])
        optimizer.step()
    assert seen == [[], [("1", (11,)), ("2", (11,))]]
