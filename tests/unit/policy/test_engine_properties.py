"""What holds for every run, every finding and every user: limits, quiet evidence, exact restore."""

from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.policy.budget import lr_cuts, lr_scale
from optwatch.policy.engine import Engine
from optwatch.wire.findings import KINDS, SEVERITIES
from tests.unit.policy.driver import Book, finding, points

LOSSES = st.one_of(st.floats(0.1, 5), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 1e-300]))


@st.composite
def courses(draw: st.DrawFn, severities: tuple[str, ...] = SEVERITIES) -> list[dict[str, Any]]:
    """Up to 25 updates: chunks of points, findings that come, change and resolve, and marks."""
    course, step = [], 1
    for _ in range(draw(st.integers(2, 25))):
        size = draw(st.integers(0, 150))
        level = draw(LOSSES)
        lr = draw(st.sampled_from([1e-3, 1e-3, 3e-2, 0.0]))
        end = step + size
        found = [
            finding(
                draw(st.integers(1, 6)),
                kind=draw(st.sampled_from(KINDS)),
                severity=draw(st.sampled_from(severities)),
                step=end,
                onset_step=max(1, end - draw(st.integers(0, 120))),
                resolved_step=draw(st.sampled_from([None, None, None, end])),
                evidence={"window": draw(st.sampled_from([0, 40, 150, 400]))},
            )
            for _ in range(draw(st.integers(0, 2)))
        ]
        noise = np.random.default_rng(step).normal(0, 0.02, size)
        course.append({"points": points(step, level + noise, lr), "findings": found})
        if draw(st.integers(0, 19)) == 0:
            course[-1]["mark"] = end
        step = end
    return course


def play(book: Book, update: dict[str, Any]) -> list[Any]:
    if "mark" in update:
        book.engine.mark(update["mark"])
    return book.feed(update["points"], *update["findings"])


@settings(max_examples=60)
@given(courses(severities=("watch", "info")))
def test_quiet_evidence_leads_at_most_to_a_clip_of_spikes_that_come_back(
    course: list[dict[str, Any]],
) -> None:
    book = Book(Engine("auto"))
    proposals = [proposal for update in course for proposal in play(book, update)]
    assert all(proposal.action == "clip" for proposal in proposals)
    spikes = [
        f for update in course for f in update["findings"] if (f.kind, f.severity) == ("loss_spike", "info")
    ]
    # The first spike is answered by nothing, and each one after it once at most.
    answers = [proposal for proposal in proposals if proposal.undo_of is None]
    assert len(answers) <= max(0, len(spikes) - 1)


@settings(max_examples=150)
@given(courses())
def test_limits_hold_whatever_happens(course: list[dict[str, Any]]) -> None:
    book = Book(Engine("auto"))
    last, floor = -(10**9), 1.0
    for update in course:
        proposals = play(book, update)
        floor = min(floor, lr_scale(book.commands))
        if any(proposal.undo_of is None for proposal in proposals):
            assert book.step - last >= 200
            assert not any(
                abs(book.step - u["mark"]) <= 50 for u in course if u.get("mark", 1e9) <= book.step
            )
            last = book.step
    assert lr_cuts(book.commands) <= 3
    assert floor >= 0.01 * (1 - 1e-9)
    # Each command is taken back at most once, and none that the user asked for.
    undone = [command.undo_of for command in book.commands if command.undo_of]
    assert len(undone) == len(set(undone))


@settings(max_examples=80)
@given(courses(), st.integers(0, 24), st.sampled_from(["auto", "advise"]))
def test_a_restored_engine_decides_the_same(course: list[dict[str, Any]], cut: int, mode: Any) -> None:
    kept, restored = Book(Engine(mode)), Book(Engine(mode))
    for index, update in enumerate(course):
        if index == cut:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(restored.engine.state()))
            restored.engine = Engine(mode)
            restored.engine.restore(state)
        assert play(kept, update) == play(restored, update)
    assert kept.outcomes == restored.outcomes


@settings(max_examples=60)
@given(
    courses(),
    st.lists(st.sampled_from(["approve", "dismiss", "refuse", "expire", "undo", "hand"]), max_size=25),
)
def test_no_user_can_bring_it_to_raise_or_to_nag(course: list[dict[str, Any]], whims: list[str]) -> None:
    book = Book(Engine("advise"))
    for index, update in enumerate(course):
        play(book, update)
        waiting = [c for c in book.commands if c.state == "proposed" and c.undo_of is None]
        assert len(waiting) <= 2  # the commands of one intervention
        whim = whims[index] if index < len(whims) else ""
        if whim == "hand":
            book.add("scale_lr", {"factor": 0.5}, step=book.step)
        elif whim == "undo":
            for command in book.commands:
                if command.state in ("applied", "judged"):
                    book.change(command.id, state="undone")
        elif whim and waiting:
            state = {"approve": "applied", "dismiss": "dismissed", "refuse": "refused", "expire": "expired"}[
                whim
            ]
            step = book.step if state == "applied" else None
            for command in waiting:
                book.change(command.id, state=state, step=step)
