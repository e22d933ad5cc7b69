"""Scheduled actions: when they are due, what holds them up, and that they stay."""

import msgspec
import numpy as np
import pytest

from optwatch.policy.engine import Engine
from optwatch.policy.load import PolicyError, parse_rules
from optwatch.series.points import Column, Points
from tests.unit.policy.driver import Book, finding, healthy, points


def book(text: str, mode: str = "auto") -> Book:
    return Book(Engine(mode, parse_rules(text, "p.toml")))


def fired(book: Book, last: int, chunk: int = 7, first: int = 1, **kwargs: object) -> list[int]:
    """The steps after which something was proposed."""
    found = []
    for start in range(first, last + 1, chunk):
        steps = np.arange(start, min(start + chunk, last + 1))
        if book.feed(points(start, healthy(steps)), **kwargs):
            found.append(int(steps[-1]))
    return found


EVERY = '[[schedule]]\naction = "restart"\nargs = { warmup = 5 }\nevery = 500\n'


def test_every_so_many_steps() -> None:
    run = book(EVERY)
    assert fired(run, 2000, chunk=1) == [500, 1000, 1500, 2000]
    assert {(c.action, c.args["warmup"], c.asked_by, c.finding) for c in run.commands} == {
        ("restart", 5, "policy", None)
    }


def test_periods_may_grow_and_a_run_seen_late_makes_up_for_nothing() -> None:
    assert fired(book(EVERY + "growth = 2\n"), 8000, chunk=1) == [500, 1500, 3500, 7500]
    assert fired(book(EVERY), 1600, chunk=1, first=1203) == [1500]
    assert fired(book(EVERY + "growth = 2\n"), 4000, chunk=1, first=2000) == [3500]
    assert fired(book(EVERY + "times = 2\n"), 3000) == [500 // 7 * 7 + 7, 1000 // 7 * 7 + 7]


def test_on_a_plateau_of_a_logged_scalar() -> None:
    text = '[[schedule]]\naction = "scale_lr"\nargs = { factor = 0.5 }\non = "plateau"\nof = "val_loss"\n'
    run = book(text + "patience = 3\n")
    held = [3.0, 2.0, 1.0, np.nan, 1.0, 0.99995, 1.2, 0.9, 0.95, 0.95, 0.95, 0.8]
    found = []
    for i, value in enumerate(held):
        steps = np.arange(10 * i + 1, 10 * i + 11)
        part = points(10 * i + 1, healthy(steps))
        logged = np.arange(10) == 4
        column = Column(np.where(logged, value, np.nan), logged)
        found.append(bool(run.feed(Points(part.step, {**part.columns, "val_loss": column}))))
    assert [i for i, each in enumerate(found) if each] == [6, 10]
    assert all("val_loss" in c.why or c.why == "" for c in run.commands)


def test_what_is_scheduled_is_judged_but_never_taken_back_or_withdrawn() -> None:
    run = book('[[schedule]]\naction = "scale_lr"\nargs = { factor = 0.9 }\nevery = 500\ntimes = 1\n')
    fired(run, 2000)
    (command,) = run.commands
    assert command.state == "judged"
    assert command.outcome is not None
    waiting = book(EVERY, mode="advise")
    assert len(fired(waiting, 700)) == 1
    assert waiting.engine.withdrawals(waiting.commands) == []
    assert fired(waiting, 1400, first=701) == []  # one proposal at a time


def test_it_waits_for_an_intervention_and_keeps_to_the_limits() -> None:
    rule = (
        '[[rule]]\nname = "r"\nwhy = "w"\nwhen = { kind = ["divergence"] }\ndo = [{ action = "restart" }]\n'
    )
    run = book(EVERY + rule)
    run.feed(points(1, healthy(np.arange(1, 450))))
    assert run.feed(points(450, [4.0] * 5), finding(step=452, onset_step=450))
    found = fired(run, 900, first=455, chunk=1)
    assert found  # put off, not dropped
    assert found[0] >= 450 + 200
    cuts = book('[[schedule]]\naction = "scale_lr"\nargs = { factor = 0.5 }\nevery = 100\n')
    assert len(fired(cuts, 2000)) == 3
    assert fired(book(EVERY), 2000, allow=("clip",)) == []


def test_observe_lets_its_time_pass() -> None:
    run = book(EVERY, mode="observe")
    assert fired(run, 700) == []
    run.engine.mode = "auto"
    assert fired(run, 1100, first=701, chunk=1) == [1000]


def test_a_state_goes_on_as_it_was() -> None:
    run = book(EVERY)
    fired(run, 700)
    other = book(EVERY)
    other.engine.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(run.engine.state())))
    other.commands = list(run.commands)
    assert fired(other, 1100, first=701, chunk=1) == [1000]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[[schedule]]\naction = "restart"\n', 1, "either every"),
        ('[[schedule]]\naction = "restart"\nevery = 5\non = "plateau"\n', 1, "either every"),
        (EVERY + EVERY.replace("every = 500", "every = 0"), 8, "every: Expected `int` >= 1"),
        (EVERY.replace("restart", "explode"), 1, "unknown action 'explode'"),
        (EVERY.replace("warmup = 5", "warmup = -5"), 1, "warmup is wrong"),
        ('[[schedule]]\naction = "restart"\non = "plateau"\ngrowth = 2\n', 1, "growth"),
        (EVERY + "evry = 3\n", 5, "unknown field `evry`"),
    ],
)
def test_a_wrong_schedule_is_said_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_rules(text, "p.toml")
    assert f"line {line}" in str(error.value)
    assert says in str(error.value)
