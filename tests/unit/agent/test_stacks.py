"""Phases and stacks of a training thread."""

import threading

import torch
from torch.utils.data import DataLoader, Dataset

import optwatch
from optwatch_agent.phases import PHASES
from optwatch_agent.stacks import MOST, frames_of


class Numbers(Dataset[torch.Tensor]):
    """Remembers in which phase it was read."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> torch.Tensor:
        self.phases.append(PHASES.here().now[0])
        return torch.full((3,), float(at))


def test_a_step_goes_through_its_phases() -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    during: list[str] = []
    model.weight.register_post_accumulate_grad_hook(lambda _: during.append(PHASES.here().now[0]))
    data = Numbers()
    watch = optwatch.attach(optimizer, daemon="tcp://127.0.0.1:1")
    own = PHASES.here().own
    for batch in DataLoader(data):
        loss = model(batch).sum()
        loss.backward()
        after = PHASES.here().now[0]
        optimizer.step()
        during += [after, PHASES.here().now[0]]
    watch.detach()
    assert data.phases == ["data loading"] * 4
    assert during == ["backward", "after backward", "before backward"] * 4
    assert PHASES.here().own > own
    data.phases.clear()
    list(DataLoader(data))
    assert "data loading" not in data.phases, "the wrapper is off"


def test_the_stack_of_a_thread_is_bounded_and_holds_places_only() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            inside.set()
            go_on.wait(30)

    secret = threading.Thread(target=deep, args=(200,))
    secret.start()
    assert inside.wait(30)
    frames = frames_of(secret.ident)
    go_on.set()
    secret.join()
    assert len(frames) == MOST
    assert "wait" in frames[-1]
    here = [frame for frame in frames if __file__ in frame]
    assert all(frame.endswith("<locals>.deep") and frame.count(":") == 1 for frame in here)
    assert frames_of(None) == frames_of(-1) == ()
