"""Notices: what is worth telling somebody who is not looking, in words."""

import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from optwatch.export.text import arguments, command_text, finding_text
from optwatch.wire.actions import Command, CommandState
from optwatch.wire.findings import SEVERITIES, Finding, Severity

About = Literal["finding", "over", "action", "lost"]
"""A finding; its end; an action that waits for approval, was taken, judged, or could not be taken; a run or a
rank that is lost, or is back."""

TOLD_STATES: frozenset[CommandState] = frozenset(
    {"proposed", "applied", "judged", "undone", "refused", "expired", "failed"}
)
"""States of a command that say something new to a person."""

MOST_WHOLE = 3
"""Notices that are told whole in one message; of more, each has a line."""
MOST_LINES = 40
"""Notices that a message has a line for."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell. `at`: unix seconds."""

    run: str
    """The run's id."""
    about: About
    key: str
    """What it is the same thing as: within a run, a second notice of one key is a repetition."""
    severity: Severity
    """How urgent it is."""
    line: str
    """All of it in a line."""
    body: str
    """Markdown."""
    at: float
    kind: str = ""
    """The finding's kind, "" for what is none."""
    found: Severity | None = None
    """The finding's severity, None for what is none."""


class Message(msgspec.Struct, frozen=True):
    """What is sent: `body` is Markdown."""

    title: str
    body: str


def finding_notice(name: str, finding: Finding, at: float) -> Notice:
    """What was found."""
    return Notice(
        run=finding.run,
        about="finding",
        key=finding.kind,
        severity=finding.severity,
        found=finding.severity,
        kind=finding.kind,
        line=plain(f"{name}: {finding.severity} {finding.kind} at step {finding.step:,}: {finding.summary}"),
        body=_body(name, finding_text(finding), f"optwatch findings {finding.run[:8]}"),
        at=at,
    )


def over_notice(name: str, finding: Finding, at: float) -> Notice:
    """What was found is over."""
    return Notice(
        run=finding.run,
        about="over",
        key=f"{finding.kind} over",
        severity="info",
        found=finding.severity,
        kind=finding.kind,
        line=plain(f"{name}: {finding.kind} is over at step {finding.resolved_step or finding.step:,}"),
        body=_body(name, finding_text(finding), f"optwatch findings {finding.run[:8]}"),
        at=at,
    )


def command_notice(name: str, command: Command, at: float) -> Notice | None:
    """What became of a command, None for what is no news to a person."""
    if command.state not in TOLD_STATES:
        return None
    what = f"{command.action} {arguments(command.args)}".rstrip()
    said = {
        "proposed": f"{what} waits for your approval",
        "judged": f"{what} was judged: {command.outcome.verdict if command.outcome else 'unclear'}",
        "undone": f"{what} was taken back",
    }.get(command.state, f"{what} was {command.state}")
    step = "" if command.step is None else f" at step {command.step:,}"
    asks = command.state == "proposed"
    more = (
        f"optwatch approve {command.run[:8]} {command.id}" if asks else f"optwatch commands {command.run[:8]}"
    )
    failed = command.state in ("refused", "expired", "failed")
    return Notice(
        run=command.run,
        about="action",
        key=f"command {command.id} {command.state}",
        severity="warning" if asks or failed else "info",
        line=plain(f"{name}: {said}{step}"),
        body=_body(name, command_text(command), more),
        at=at,
    )


def lost_notice(run: str, name: str, rank: int | None, step: int, lost: bool, at: float) -> Notice:
    """A run (rank None) or a rank of it that nothing is heard of any more, or that is back."""
    who = name if rank is None else f"{name}: rank {rank}"
    none = "no rank is in touch" if rank is None else "nothing is heard of it"
    said = f"is lost, {none}; its last known step is {step:,}" if lost else f"is back at step {step:,}"
    return Notice(
        run=run,
        about="lost",
        key=f"rank {rank} {'lost' if lost else 'back'}",
        severity="critical" if lost else "info",
        line=plain(f"{who} {said}"),
        body=f"{plain(who)} {said}.\n\nMore: `optwatch status {run[:8]}`",
        at=at,
    )


def message_of(notices: Sequence[Notice], repeated: int, left_out: int) -> Message:
    """One message of all of them. `repeated`: repetitions not told; `left_out`: not told for want of room."""
    tail = [f"Repetitions left out: {repeated}."] if repeated else []
    tail += [f"Left out, since too many waited: {left_out}."] if left_out else []
    if len(notices) <= MOST_WHOLE:
        first = max(notices, key=lambda notice: SEVERITIES.index(notice.severity))
        more = f" (and {len(notices) - 1} more)" if len(notices) > 1 else ""
        bodies = [n.body if n is first else f"**{n.line}**\n\n{n.body}" for n in notices]
        return Message(f"optwatch {first.line[:200]}{more}", "\n\n---\n\n".join(bodies + tail))
    critical = sum(notice.severity == "critical" for notice in notices)
    told = notices[-MOST_LINES:]
    lines = [f"- {time.strftime('%d %b %H:%M', time.localtime(n.at))} {n.line}" for n in told]
    if earlier := len(notices) - len(told):
        tail.insert(0, f"{earlier} earlier ones are not listed.")
    title = f"optwatch: {len(notices)} messages" + (f", {critical} critical" if critical else "")
    return Message(title, "\n\n".join(["\n".join(lines), *tail]))


def _body(name: str, text: str, more: str) -> str:
    return f"Run {plain(name)}\n\n{text}\n\nMore: `{more}`"


def plain(text: str) -> str:
    """A text in one line, without control characters, whatever a run's name holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]
