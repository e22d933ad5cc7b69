"""When a target is told what: repetitions, digests, quiet hours, failures."""

import time

import pytest

from optwatch.export.notices import Notice, command_notice, finding_notice, lost_notice, over_notice
from optwatch.export.outbox import MOST_HELD, Outbox
from optwatch.export.targets import Target
from tests.unit.export.test_tensorboard import RUN, a_command, a_finding

NOON = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))
HOUR = 3_600.0


def outbox(**settings: object) -> Outbox:
    return Outbox(Target(name="t", url="json://x", **settings))  # type: ignore[arg-type]


def notice(at: float = NOON, run: str = RUN, **changes: object) -> Notice:
    return finding_notice("digits", a_finding(run=run, **changes), at)


def take(box: Outbox, *notices: Notice) -> None:
    for each in notices:
        box.take(each, each.at)


def told(box: Outbox, now: float, well: bool = True) -> list[str]:
    """What is sent now: the kinds and runs of the notices."""
    if (due := box.due(now)) is None:
        return []
    box.sent(due[0], now, well)
    return [each.key for each in due[0]]


def test_a_kind_is_told_once_a_run_until_its_interval_is_over_or_it_is_worse() -> None:
    box = outbox(repeat_minutes=60)
    take(box, notice(severity="warning"), notice(NOON + 1, severity="warning", id=2))
    take(box, notice(NOON + 2, run="other", severity="warning"))
    assert told(box, NOON + 3) == ["divergence", "divergence"]  # one of each run
    take(box, notice(NOON + 4, severity="warning", id=3))
    assert told(box, NOON + 5) == []
    take(box, notice(NOON + 6, severity="critical", id=4))
    due = box.due(NOON + 7)
    assert due is not None
    assert "Repetitions left out: 1." in due[1].body
    assert told(box, NOON + 7) == ["divergence"]
    take(box, notice(NOON + HOUR, severity="critical", id=5))
    assert told(box, NOON + HOUR) == []
    take(box, notice(NOON + 7 + HOUR, severity="critical", id=6))
    assert told(box, NOON + 7 + HOUR) == ["divergence"]


def test_only_what_is_wanted_is_told() -> None:
    command = command_notice("digits", a_command(state="proposed"), NOON)
    assert command is not None
    assert command_notice("digits", a_command(state="scheduled"), NOON) is None
    everything = [
        notice(),
        notice(kind="plateau", severity="warning", id=2),
        notice(kind="converged", severity="info", id=3),
        over_notice("digits", a_finding(resolved_step=9), NOON),
        over_notice("digits", a_finding(kind="converged", severity="info", resolved_step=9), NOON),
        command,
        lost_notice(RUN, "digits", None, 5, True, NOON),
    ]
    for settings, wanted in [
        ({}, ["divergence", "plateau", "command 1 proposed", "rank None lost"]),
        ({"about": ("finding",), "severity": ("critical",)}, ["divergence"]),
        ({"about": ("over",)}, ["divergence over"]),
        ({"kind": ("plateau",), "about": ("finding", "over")}, ["plateau"]),
    ]:
        box = outbox(**settings)
        take(box, *everything)
        assert told(box, NOON) == wanted


def test_a_digest_gathers_what_is_not_critical() -> None:
    box = outbox(digest_minutes=30)
    take(box, notice(severity="warning", kind="plateau"))
    take(box, notice(NOON + 60, severity="warning", kind="oscillation", id=2))
    for number, kind in enumerate(("overfitting", "plateau", "clip_saturated", "straggler")):
        take(box, notice(NOON + 90, severity="warning", kind=kind, id=10 + number))
    take(box, notice(NOON + 120, id=3))
    assert told(box, NOON + 120) == ["divergence"]
    take(box, notice(NOON + 130, severity="warning", kind="plateau", id=20))
    assert told(box, NOON + 29 * 60) == []
    due = box.due(NOON + 30 * 60)
    assert due is not None
    assert due[1].title == "optwatch: 5 messages"
    assert due[1].body.count("- 02 Mar 12:0") == 5
    assert "Repetitions left out: 1." in due[1].body
    assert len(told(box, NOON + 30 * 60)) == 5
    take(box, notice(NOON + 40 * 60, severity="warning", kind="dead_parameters", id=4))
    assert told(box, NOON + 69 * 60) == []
    assert box.due(NOON + 69 * 60, ending=True) is not None
    assert told(box, NOON + 70 * 60) == ["dead_parameters"]


def test_a_few_at_once_are_told_whole() -> None:
    box = outbox()
    take(box, notice(severity="warning", kind="plateau"), notice(id=2))
    due = box.due(NOON)
    assert due is not None
    assert due[1].title.startswith("optwatch digits: critical divergence at step 3")
    assert due[1].title.endswith("(and 1 more)")
    assert due[1].body.count("What helps:") == 2


def test_in_quiet_hours_only_the_exceptions_are_told_and_the_rest_after_them() -> None:
    box = outbox(quiet="22:00-07:00", quiet_except=("critical",))
    night = NOON + 11 * HOUR
    take(box, notice(night, severity="warning", kind="plateau"), notice(night + 1, id=2))
    assert told(box, night + 2) == ["divergence"]
    assert told(box, night + 7.9 * HOUR) == []
    assert told(box, night + 8 * HOUR) == ["plateau"]
    strict = outbox(quiet="11:30-13:00")
    take(strict, notice())
    assert told(strict, NOON) == []
    assert told(strict, NOON + HOUR) == ["divergence"]


def test_what_could_not_be_sent_is_tried_again_later_and_later_and_never_lost() -> None:
    box = outbox()
    take(box, notice())
    now, waits = NOON, []
    for _ in range(12):
        assert told(box, now, well=False) == ["divergence"]
        start = now
        while box.due(now) is None:
            now += 10
        waits.append(now - start)
    assert waits[:3] == [30, 60, 120]
    assert waits[-1] == HOUR
    take(box, notice(now, kind="plateau", severity="warning", id=2))
    assert told(box, now) == ["divergence", "plateau"]
    assert box.waiting == 0


def test_what_waits_is_bounded_and_the_critical_stays() -> None:
    box = outbox(quiet="00:00-23:59")
    take(box, notice())
    for number in range(MOST_HELD + 50):
        take(box, notice(NOON + number, severity="warning", run=f"run {number}", id=number))
    assert box.waiting == MOST_HELD
    due = box.due(NOON + 11.99 * HOUR)
    assert due is not None
    assert due[0][0].severity == "critical"
    assert "Left out, since too many waited: 51." in due[1].body
    assert f"{MOST_HELD - 40} earlier ones" in due[1].body


def test_a_name_cannot_break_out_of_its_line() -> None:
    nasty = finding_notice("a\r\nBcc: all@example.org\x1b[2J", a_finding(summary="x\ny"), NOON)
    assert nasty.line.isprintable()
    assert "\r" not in nasty.body
    assert "\x1b" not in nasty.body


@pytest.mark.parametrize(
    ("hours", "quiet"), [("22:00-07:00", {0, 6, 22, 23}), ("09:00-11:00", {9, 10}), ("", set())]
)
def test_hours_may_span_midnight(hours: str, quiet: set[int]) -> None:
    target = Target(name="t", url="json://x", quiet=hours)
    assert {hour for hour in (0, 6, 7, 9, 10, 11, 21, 22, 23) if target.is_quiet(60 * hour)} == quiet
