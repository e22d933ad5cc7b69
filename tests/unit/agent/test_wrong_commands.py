"""Commands that are wrong, contradictory, foreign, given twice or late: refused with a reason or passed over,
and the training goes on bit for bit as if none had come."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.wire.actions import ACTIONS
from optwatch.wire.messages import Prepare
from optwatch_agent.actuators import Actuators
from optwatch_agent.arbiter import Arbiter
from optwatch_agent.attach import attach
from optwatch_agent.control import Control
from optwatch_agent.identity import identify
from optwatch_agent.membership import Membership
from tests.unit.agent.models import batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand, Kept
from tests.wrong_commands import WRONG, Asked

GUARD = 30.0


@functools.cache
def untouched() -> list[Any]:
    """The bits without any command."""
    return trained(None)[0]


def trained(asked: list[list[Asked]] | None) -> tuple[list[Any], list[tuple[str, str, str]], int]:
    """The bits after a few steps, what became of the commands given before each, and how many wait."""
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data, outcomes, waiting = batches(), [], 0
    if asked is None:
        train(model, optimizer, data, 4)
    else:
        watch = attach(optimizer, model=model, allow="all")
        hand = Hand(watch._agent)
        for commands in asked:
            for action, args in commands:
                hand.command(action, **args)
            waiting += len(watch._agent.control.pending)
            train(model, optimizer, data, 1)
        outcomes = hand.outcomes()
        watch.detach()
    return fingerprint(model, optimizer), outcomes, waiting


@settings(max_examples=25)
@given(st.lists(st.lists(WRONG, max_size=12), min_size=4, max_size=4))
def test_what_is_wrong_is_refused_and_changes_nothing(asked: list[list[Asked]]) -> None:
    bits, outcomes, waiting = trained(asked)
    given_in_all = [command for commands in asked for command in commands]
    assert [(action, state) for action, state, _ in outcomes] == [
        (action, "refused") for action, _ in given_in_all
    ]
    assert all(len(reason) > 10 for _, _, reason in outcomes), outcomes
    assert waiting == 0
    assert bits == untouched()


RIGHT = st.sampled_from(
    [
        ("restart", {}),
        ("scale_lr", {"factor": 0.5}),
        ("clip", {"max_norm": 1e-3}),
        ("perturb", {"std": 0.1}),
        ("stop", {}),
    ]
)


@settings(max_examples=25)
@given(st.lists(RIGHT, min_size=1, max_size=5), st.sampled_from(["session", "ranks", "allow"]))
def test_what_is_right_but_not_for_this_process_changes_nothing(asked: list[Asked], wrong: str) -> None:
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = attach(optimizer, allow=() if wrong == "allow" else "all")
    hand = Hand(watch._agent)
    for number, (action, args) in enumerate(asked):
        session = "another" if wrong == "session" else watch._agent.identity.session
        ranks = 2 if wrong == "ranks" else 1
        steps = (5,) if ranks > 1 else ()
        watch._agent.take(
            Prepare(
                session=session, command=str(number), vote=f"v{number}", n=ranks, steps=steps, order=number,
                action=action, args=args,
            )
        )  # fmt: skip
    train(model, optimizer, batches(), 4)
    states = [state for _, state, _ in hand.outcomes()]
    assert states == ([] if wrong == "session" else ["refused"] * len(asked))
    assert not watch.should_stop
    watch.detach()
    assert fingerprint(model, optimizer) == untouched()


@settings(max_examples=15)
@given(st.lists(st.sampled_from([0, 0, 1, 2]), min_size=3, max_size=12))
def test_one_that_comes_twice_is_done_once(order: list[int]) -> None:
    """A link repeats what it does not know to have arrived, at any later time."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    watch = attach(optimizer)
    hand = Hand(watch._agent)
    for number in order:
        hand.count = number
        hand.command("scale_lr", factor=0.5)
        for _ in range(2):  # the first one arms the wrapper
            optimizer.step()
    applied = [state for _, state, _ in hand.outcomes()].count("applied")
    assert applied == len(set(order))
    assert watch._agent.tracks[0].actuators.lr_scale.target == 0.5**applied
    watch.detach()


@contextmanager
def two_ranks() -> Iterator[list[tuple[Control, torch.nn.Module, torch.optim.Optimizer, list[int]]]]:
    """The controls of two ranks on one store, each with a training, and the step that it is at."""
    store, ranks, arbiters = dist.HashStore(), [], []
    for rank in range(2):
        model = classifier().eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        membership = Membership(dataclasses.replace(identify("two"), rank=rank, world_size=2), None)
        membership.arbiter = Arbiter(lambda: store)
        arbiters.append(membership.arbiter)
        control = Control("s", tuple(ACTIONS), [Actuators(optimizer)], membership, strict=False)
        control.outcomes = Kept()
        at = [10]
        control.follow(lambda at=at: (at[0],))  # type: ignore[misc]
        ranks.append((control, model, optimizer, at))
    wait_for(lambda: all(control.state == "armed" for control, *_ in ranks))
    try:
        yield ranks
    finally:
        for arbiter in arbiters:
            arbiter.close(GUARD)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@settings(max_examples=15)
@given(st.lists(st.tuples(RIGHT, st.integers(0, 10), st.integers(0, 1)), min_size=1, max_size=4))
def test_one_that_comes_late_to_a_rank_is_applied_on_none(asked: list[tuple[Asked, int, int]]) -> None:
    """The other one votes for it in time, and drops it at its step."""
    with two_ranks() as ranks:
        for number, ((action, args), past, late) in enumerate(asked):
            for rank, (control, *_) in enumerate(ranks):
                step = 10 - past if rank == late else 12
                control.take(
                    Prepare(
                        session="s", command=str(number), vote=f"v{number}", n=2, steps=(step,), order=number,
                        action=action, args=args,
                    )
                )  # fmt: skip
        for control, model, optimizer, at in ranks:
            for at[0] in (11, 12, 13):
                control.apply_due(0, at[0])
                train(model, optimizer, batches(), 1)
            assert control.pending == []
            assert not control.stopped
        bits = [fingerprint(model, optimizer)[:2] for _, model, optimizer, _ in ranks]
        states = [outcome.state for control, *_ in ranks for outcome in control.outcomes.all]  # type: ignore[attr-defined]
    assert states.count("aborted") == 2 * len(asked)
    assert "applied" not in states
    alone = classifier().eval()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-2)
    for _ in range(3):
        train(alone, optimizer, batches(), 1)
    assert bits == [fingerprint(alone, optimizer)[:2]] * 2
