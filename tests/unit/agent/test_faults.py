"""Optimizers that do what no optimizer should: the agent says so once, does less, and training goes on."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optwatch
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import Hand, measure_always

STEPS = 12
Fault = Callable[[torch.optim.Optimizer], None]


def each_state(change: Callable[[dict[str, Any]], None]) -> Fault:
    def fault(optimizer: torch.optim.Optimizer) -> None:
        for state in list(optimizer.state.values()):
            change(state)

    return fault


def first_group(change: Callable[[dict[str, Any]], None]) -> Fault:
    return lambda optimizer: change(optimizer.param_groups[0])


class Odd(nn.Parameter):
    """Its gradient has another shape for everybody but its optimizer."""

    true_grad: Tensor | None = None

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        return torch.ones(3, 1, 2)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.true_grad = value


def add_odd(optimizer: torch.optim.Optimizer) -> None:
    if len(optimizer.param_groups) == 1:
        optimizer.param_groups.append(
            {**optimizer.param_groups[0], "params": [Odd(torch.ones(5))], "odd": True}
        )


def add_meta(optimizer: torch.optim.Optimizer) -> None:
    if len(optimizer.param_groups) == 1:
        param = nn.Parameter(torch.ones(5, device="meta"))
        param.grad = torch.ones(5, device="meta")
        optimizer.param_groups.append({**optimizer.param_groups[0], "params": [param], "odd": True})


FAULTS: dict[str, Fault] = {
    "none": lambda optimizer: None,
    "moment is text": each_state(lambda state: state.update(exp_avg="broken")),
    "moment is a list": each_state(lambda state: state.update(exp_avg=[torch.ones(2)], exp_avg_sq={1: 2})),
    "moment on meta": each_state(lambda state: state.update(exp_avg=torch.ones(2, device="meta"))),
    "moment of integers": each_state(lambda state: state.update(exp_avg_sq=torch.ones(2, dtype=torch.int64))),
    "moment of other shape": each_state(lambda state: state.update(exp_avg=torch.ones(7, 7))),
    "sparse moment": each_state(lambda state: state.update(exp_avg=torch.ones(4, 4).to_sparse())),
    "step is text": each_state(lambda state: state.update(step="many")),
    "step is none": each_state(lambda state: state.update(step=None)),
    "step is a vector": each_state(lambda state: state.update(step=torch.ones(3))),
    "state vanishes": lambda optimizer: optimizer.state.clear(),
    "states are emptied": each_state(lambda state: state.clear()),
    "state is none": lambda optimizer: optimizer.state.update(dict.fromkeys(list(optimizer.state))),
    "lr is text": first_group(lambda group: group.update(lr="fast")),
    "no lr": first_group(lambda group: group.pop("lr", None)),
    "lr is a vector": first_group(lambda group: group.update(lr=torch.ones(2))),
    "betas are none": first_group(lambda group: group.update(betas=None)),
    "eps is text": first_group(lambda group: group.update(eps="small")),
    "groups are replaced": lambda o: setattr(o, "param_groups", [dict(group) for group in o.param_groups]),
    "a parameter leaves": first_group(lambda group: len(group["params"]) > 2 and group["params"].pop()),
    "gradient of other shape": add_odd,
    "parameter on meta": add_meta,
    "gradient vanishes": lambda o: [setattr(p, "grad", None) for g in o.param_groups for p in g["params"]],  # type: ignore[func-returns-value]
}


class Own(torch.optim.Optimizer):
    """An optimizer of the user's own that does not mind what happens to its state."""

    def __init__(self, params: Any, fault: Fault) -> None:
        self.fault = fault
        super().__init__(params, {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if not group.get("odd") and p.grad is not None:
                    p.add_(p.grad, alpha=-0.05)
                    if not self.state[p]:
                        self.state[p] = {"exp_avg": p.grad.clone(), "exp_avg_sq": p.grad.square(), "step": 1}
        self.fault(self)


class OwnAdam(torch.optim.Adam):
    """The same under the name and with the roles of Adam."""

    def __init__(self, params: Any, fault: Fault) -> None:
        super().__init__(params, lr=0.05)
        self.fault = fault

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        Own.step(self, closure)  # type: ignore[arg-type]


def run(kind: Any, fault: Fault, watched: bool, begin: int = 5) -> list[bytes]:
    """Train, with the fault from step 5 on; the parameters' bits."""
    model = classifier()
    optimizer = kind(model.parameters(), lambda o: None)
    watch = optwatch.attach(optimizer, model=model) if watched else None
    if watch is not None:
        measure_always(watch)
    data = batches()
    train(model, optimizer, data, begin)
    optimizer.fault = fault
    train(model, optimizer, data, STEPS)
    if watch is not None:
        track = watch._agent.tracks[0]
        assert track.completed == begin + STEPS or not track.active
        watch.detach()
    return [p.detach().numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", [Own, OwnAdam])
def test_training_goes_on_as_without_the_agent(
    name: str, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "optwatch"):
        ours = run(kind, FAULTS[name], watched=True)
    assert ours == run(kind, FAULTS[name], watched=False)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) <= (0 if name == "none" else 1), said


@pytest.mark.parametrize("name", FAULTS)
def test_attaching_to_what_is_broken_already(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    optimizer = Own(model.parameters(), FAULTS[name])
    data = batches()
    train(model, optimizer, data, 2)
    watch = optwatch.attach(optimizer, model=model)
    train(model, optimizer, data, 3)
    watch.log(loss=1.0)
    watch.detach()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


class Hostile(Own):
    """Every look at what it has not is an error."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"who asks for {name}?")


def test_an_optimizer_that_answers_no_question() -> None:
    assert run(Hostile, FAULTS["none"], watched=True) == run(Hostile, FAULTS["none"], watched=False)


def test_a_thing_that_has_every_attribute_is_refused() -> None:
    class Everything:
        def __getattr__(self, name: str) -> Any:
            return Everything()

    with pytest.raises(TypeError, match=r"takes a torch\.optim\.Optimizer"):
        optwatch.attach(Everything())


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_clip_that_fails_stays_out_of_the_step(with_closure: bool) -> None:
    """A gradient on meta has no norm. The step is counted: other ranks count it too."""
    param, ghost = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, device="meta"))

    def closure() -> None:
        param.grad, ghost.grad = torch.ones(3), torch.ones(3, device="meta")

    optimizer = torch.optim.SGD([param], lr=0.1, foreach=False)
    watch = optwatch.attach(optimizer)
    Hand(watch._agent).command("clip", max_norm=0.1)
    for step in range(6):
        if step == 1:  # when the clip is in force: before, it would be refused
            optimizer.add_param_group({"params": [ghost]})
        closure()
        optimizer.step(closure if with_closure else None)  # type: ignore[arg-type]
    track = watch._agent.tracks[0]
    assert track.degraded
    assert track.completed >= 3
    watch.detach()
    torch.testing.assert_close(param.detach(), torch.full((3,), 1.0 - 0.1 * 0.1 / 3**0.5 - 5 * 0.1))


def test_an_exception_of_a_step_passes_through() -> None:
    def stumble(optimizer: torch.optim.Optimizer) -> None:
        raise LookupError("the user's own")

    model = classifier()
    optimizer = Own(model.parameters(), stumble)
    with optwatch.attach(optimizer), pytest.raises(LookupError, match="the user's own"):
        train(model, optimizer, batches(), 1)


JUNK: dict[str, Any] = {
    "text": "nonsense",
    "huge": 10**400,
    "none": None,
    "vector": torch.ones(2),
    "empty": torch.ones(0),
    "meta": torch.ones((), device="meta"),
    "complex": 1j,
    "complex_tensor": torch.tensor(1j),
    "list": [1.0],
    "array": np.ones(3),
    "date": np.datetime64("2020-01-01"),
    "object": object(),
}


def test_log_takes_numbers_and_says_once_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(optimizer)
    train(model, optimizer, batches(), 1)
    loss = model(next(batches())[0]).sum()
    assert loss.requires_grad
    good = {
        "of_graph": loss,
        "int": 3,
        "bool": True,
        "np32": np.float32(1.5),
        "np0d": np.array(2.5),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "one": torch.ones(1, 1),
        "integer": torch.tensor(7),
        "nan": float("nan"),
        "numeral": np.int64(4),
    }
    with caplog.at_level(logging.WARNING, "optwatch"):
        watch.log(**good)
        assert not caplog.records
        for _ in range(3):
            watch.log(**JUNK)
    row = watch._agent.tracks[0].recorder._newest[0].values
    assert set(good) <= set(row)
    assert not set(JUNK) & set(row)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(JUNK), "each dropped name is told once"
    watch.detach()
    watch.log(**good)
    watch.mark("late")
