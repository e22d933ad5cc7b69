"""`optwatch status RUN --watch`: plain lines as things happen, for screen readers and pipes.

A line is a sentence: no cursor movement, no colour, no glyph that has to be explained.
"""

import time
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from optwatch.cli import show
from optwatch.cli.commands import outcome_text
from optwatch.cli.errors import Wrong
from optwatch.client import Client, DaemonError, Refusal
from optwatch.client.several import daemon_of
from optwatch.export.text import arguments
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.requests import RunStatus

LOOK = 0.5
"""Seconds between two looks at the run: what is found is said within that."""
_PATIENCE = 3.0
"""Seconds that the daemon has to answer."""


class Teller(Protocol):
    """Says what happens, in words or as JSON."""

    def status(self, status: RunStatus) -> None: ...
    def changed(self, status: RunStatus, before: RunStatus) -> None: ...
    def finding(self, finding: Finding, run: RunStatus) -> None: ...
    def command(self, command: Command, run: RunStatus) -> None: ...
    def link(self, reason: str) -> None:
        """`reason`: why the daemon cannot be reached; empty once it can be again."""


def watch(run: str, interval: float, as_json: bool) -> int:
    """Tell of a run until it ends: its status every `interval` seconds, the rest as it happens.

    Raises:
        Wrong: no daemon answers at the beginning, or it does not know the run.
    """
    teller: Teller = JsonLines() if as_json else Sentences()
    watched: _Watched | None = None
    lost = False
    while True:
        try:
            with Client(daemon_of(run), timeout=_PATIENCE) as client:
                watched = watched or _Watched(client.status(run).run, interval, teller)
                while True:
                    ended = watched.look(client)
                    if lost:
                        teller.link("")
                        lost = False
                    if ended:
                        return 0
                    time.sleep(LOOK)
        except Refusal as refusal:
            raise Wrong(str(refusal)) from None
        except DaemonError as error:
            if watched is None:
                raise Wrong(str(error)) from None
            if not lost:
                teller.link(str(error))
                lost = True
            time.sleep(LOOK)


class _Watched:
    """What was told of a run so far."""

    def __init__(self, run: str, interval: float, teller: Teller) -> None:
        self._run = run
        self._interval = interval
        self._teller = teller
        self._status: RunStatus | None = None
        self._told_at = 0.0
        self._findings: dict[int, tuple[str, bool]] = {}
        self._commands: dict[str, tuple[Any, ...]] = {}

    def look(self, client: Client) -> bool:
        """Tell what is new; whether the run has ended."""
        status = client.status(self._run)
        findings, commands = client.findings(self._run), client.commands(self._run)
        if self._status is not None and _standing(self._status) != _standing(status):
            self._teller.changed(status, self._status)
        for finding in findings:
            known = (finding.severity, finding.resolved_step is not None)
            if self._findings.get(finding.id) != known and finding.severity != "watch":
                self._teller.finding(finding, status)
            self._findings[finding.id] = known
        for command in commands:
            now = (command.state, command.due, command.votes, command.outcome)
            if self._commands.get(command.id) != now:
                self._teller.command(command, status)
            self._commands[command.id] = now
        ended = status.state == "ended"
        if ended or time.monotonic() - self._told_at >= self._interval or self._status is None:
            self._teller.status(status)
            self._told_at = time.monotonic()
        self._status = status
        return ended


def _standing(status: RunStatus) -> tuple[Any, ...]:
    """What is worth a line of its own when it is another."""
    return (status.state, status.mode, status.control, status.lr_scale, status.clip)


class Sentences:
    """One line each, with the time of day before it."""

    def status(self, status: RunStatus) -> None:
        self._say(status_sentence(status))

    def changed(self, status: RunStatus, before: RunStatus) -> None:
        for sentence in changes(status, before):
            self._say(sentence)

    def finding(self, finding: Finding, run: RunStatus) -> None:
        self._say(finding_sentence(finding))

    def command(self, command: Command, run: RunStatus) -> None:
        self._say(command_sentence(command, run))

    def link(self, reason: str) -> None:
        self._say(f"Link lost: {reason}. Trying again." if reason else "The daemon answers again.")

    def _say(self, sentence: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {show.plain(sentence)}", flush=True)


class JsonLines:
    """One JSON object a line: `event`, `time` (unix seconds), and what it is about."""

    def status(self, status: RunStatus) -> None:
        self._say("status", status=status)

    def changed(self, status: RunStatus, before: RunStatus) -> None:
        self._say("status", status=status)

    def finding(self, finding: Finding, run: RunStatus) -> None:
        self._say("finding", finding=finding)

    def command(self, command: Command, run: RunStatus) -> None:
        self._say("command", command=command)

    def link(self, reason: str) -> None:
        self._say("link", link="lost" if reason else "live", reason=reason)

    def _say(self, event: str, **about: Any) -> None:
        print(msgspec.json.encode({"event": event, "time": time.time(), **about}).decode(), flush=True)


# --- the sentences ----------------------------------------------------------------------------------------


def status_sentence(status: RunStatus) -> str:
    """Where the run stands: step, loss, LR, norm, speed, state, ranks, mode."""
    parts = [f"Step {status.step:,}"]
    if status.loss is not None:
        parts.append(f"loss {show.number(status.loss)}")
    if status.lr is not None:
        scale = f" times {status.lr_scale:g}" if status.lr_scale != 1 else ""
        parts.append(f"learning rate {show.number(status.lr)}{scale}")
    if status.grad_norm is not None:
        parts.append(f"gradient norm {show.number(status.grad_norm)}")
    if status.rate and status.state == "live":
        parts.append(f"{status.rate:.3g} steps per second")
    up = sum(rank.link == "up" for rank in status.ranks)
    parts += [status.state, f"{up} of {status.world_size} ranks", f"mode {status.mode}"]
    return ", ".join(parts) + "."


def changes(status: RunStatus, before: RunStatus) -> Iterator[str]:
    """What stands otherwise than before, a sentence each."""
    if status.state != before.state:
        yield f"The run is {status.state} now, at step {status.step:,}."
    if status.mode != before.mode:
        yield f"The mode is {status.mode} now."
    if status.control != before.control:
        yield f"Control: {status.control}."
    if status.lr_scale != before.lr_scale:
        yield f"The learning rate is scaled by {status.lr_scale:g} now, by {before.lr_scale:g} before."
    if status.clip != before.clip:
        yield (
            "Clipping is off now."
            if status.clip is None
            else f"Gradients are clipped to {status.clip:g} now."
        )


def finding_sentence(finding: Finding) -> str:
    """What was found, where, since when, and why most likely; or that it is over."""
    about = finding.kind.replace("_", " ")
    about += f" of {finding.tensor}" if finding.tensor is not None else ""
    about += f" on rank {finding.rank}" if finding.rank is not None else ""
    if finding.resolved_step is not None:
        return f"Over: {about}, since step {finding.onset_step:,}, over at step {finding.resolved_step:,}."
    said = f"Found, {finding.severity}: {about}, at step {finding.step:,}, since step {finding.onset_step:,}."
    said += f" {finding.summary.rstrip('.')}."
    likely = max(finding.causes, key=lambda cause: cause.weight, default=None)
    if likely is not None:
        because = likely.because.rstrip(".")
        said += f" Likely cause: {likely.cause.replace('_', ' ')}, {likely.weight:.0%}: {because}."
    return said


def command_sentence(command: Command, run: RunStatus) -> str:
    """What becomes of a command."""
    what = f"{command.action} {arguments(command.args)}".rstrip()
    if command.undo_of is not None:
        what = f"undo of {command.undo_of}: {what}"
    said = f"{command.state.capitalize()}: action {command.id}, {what}"
    if command.step is not None:
        said += f", at step {command.step:,}, on {len(command.ranks_applied)} of {run.world_size} ranks"
    elif command.due is not None and command.state in ("sent", "scheduled"):
        said += f", due at step {command.due:,}, votes {len(command.votes)} of {run.world_size}"
    if command.outcome is not None:
        said += f", {outcome_text(command)}"
    why = command.reason or command.why
    said += f". {why.rstrip('.')}." if why else "."
    if command.state == "proposed":
        said += f" To let it go ahead: optwatch approve {run.run[:8]} {command.id}."
    return said
