"""What a signal handler of the script raises reaches the script, whatever of ours was running."""

import functools
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import optwatch
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import Hand, measure_always


class TimeIsUp(Exception):
    """Raised by the script's handlers."""


def plain(signum: int, frame: Any) -> None:
    raise TimeIsUp


def whatever(*args: Any) -> None:
    raise TimeIsUp


def resetting(signum: int, frame: Any) -> None:
    signal.signal(signum, signal.SIG_DFL)
    raise TimeIsUp


def dropping(signum: int, frame: Any) -> None:
    del signum, frame
    raise TimeIsUp


class Job:
    def __call__(self, signum: int, frame: Any) -> None:
        self.end()

    def end(self) -> None:
        raise TimeIsUp


HANDLERS: dict[str, Callable[..., None]] = {
    "function": plain,
    "any arguments": whatever,
    "resets itself": resetting,
    "drops its arguments": dropping,
    "object": Job(),
    "partial": functools.partial(whatever, "job"),
}


@pytest.fixture
def handle() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


class Interrupted:
    """Sends a signal at the nth call of a function of the agent's, or of one of that name."""

    def __init__(self, nth: int, name: str = "") -> None:
        self.left = nth
        self._name = name

    def __enter__(self) -> "Interrupted":
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        del frame  # or this would pass for a handler
        if self._name not in ("", code.co_name):
            return
        # Python itself drops what is raised where a generator is thrown away.
        if "optwatch_agent" in code.co_filename and not code.co_flags & inspect.CO_GENERATOR:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_it_reaches_the_script_from_within_ours(kind: str, handler: str, handle: Any) -> None:
    nth, every = 1, 5 if (kind, handler) == ("adamw", "function") else 17
    while interrupted_at(nth, kind, HANDLERS[handler], handle):
        nth += every
    assert nth > 300  # as many calls there are in two sampled steps


def interrupted_at(nth: int, kind: str, handler: Any, handle: Any) -> bool:
    """Train with a signal at the nth call of ours; whether there are as many."""
    model = classifier()
    make: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    optimizer = make(model.parameters(), lr=0.01)
    watch = optwatch.attach(optimizer, model=model, snapshots=1 << 20, guard=("skip_nonfinite", "clip"))
    measure_always(watch)
    track = watch._agent.tracks[0]
    data = batches()
    train(model, optimizer, data, 2)
    Hand(watch._agent).command("clip", max_norm=1.0)
    handle(handler)
    with Interrupted(nth) as interrupted:
        try:
            with torch.enable_grad():
                train(model, optimizer, data, 1)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                watch.log(accuracy=0.5)
                train(model, optimizer, data, 1)
        except TimeIsUp:
            heard = True
        else:
            heard = False
    sent = interrupted.left <= 0
    assert heard == sent
    assert not track.degraded
    before = track.completed
    train(model, optimizer, data, 3)
    assert track.completed == before + 3
    watch.detach()
    return sent


def test_gradients_that_were_set_aside_come_back_with_it(handle: Any) -> None:
    """And not later, in the place of what the script has cleared."""
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight, other], lr=0.1)
    watch = optwatch.attach(optimizer, guard=("skip_nonfinite",))
    handle(plain)
    optimizer.step()
    weight.grad, other.grad = torch.tensor([1.0, torch.inf]), torch.ones(2)
    with pytest.raises(TimeIsUp), Interrupted(1, "drop_sample"):
        optimizer.step()
    optimizer.zero_grad()
    other.grad = torch.ones(2)
    optimizer.step()
    watch.detach()
    assert weight.tolist() == [1.0, 1.0]
    assert other.tolist() == pytest.approx([0.9, 0.9])


def test_errors_of_ours_do_not(handle: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Those that are raised in a function of the script's which is no handler."""
    handle(plain)

    class Odd(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            raise TimeIsUp

    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    data = batches()
    train(model, optimizer, data, 1)
    for param in model.parameters():
        optimizer.state[param] = Odd(optimizer.state[param])
    train(model, optimizer, data, 2)
    assert "TimeIsUp" in watch._agent.tracks[0].degraded
    watch.detach()
