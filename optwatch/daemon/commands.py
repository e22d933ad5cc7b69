"""Commands: from a wish to an applied action, and the trail of who wanted it, why and what came of it.

    proposed → sent → scheduled → applied → judged
    dismissed | refused | expired | failed | undone

With one rank a command goes straight to it and the next step applies it. With more, the daemon only
proposes a step S to all of them and the job's own store decides (see the agent's vote): all apply it at S
or none does, and a vote that failed is held again at a later S, at most `ATTEMPTS` times.
"""

import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from optwatch.daemon.peers import Peer, obstacle
from optwatch.wire.actions import (
    OPEN_STATES,
    Clip,
    Command,
    Outcome,
    Restart,
    ScaleLr,
    action_args,
    parse_action,
)
from optwatch.wire.messages import Ask, Prepare, Report

ATTEMPTS = 4
"""A first vote and three more."""
EXPIRY = 30.0
"""Seconds that a command may stay unanswered."""
FIRST_MARGIN = 0.3
MAX_MARGIN = 10.0
"""Seconds between a proposal and its step: learned from the votes, within these bounds."""
LR_FLOOR = 0.01
"""The least share of the schedule's learning rate that a command may leave."""
MAX_FACTOR = 100.0

ReportState = Literal["pending", "applied", "aborted", "refused", "failed"]


class CommandError(Exception):
    """A command that cannot be; `code` as in `Refused`, the message is for the user."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Entry(msgspec.Struct, kw_only=True):
    """A command and what the daemon has to remember about it; this is what the store keeps."""

    command: Command
    vote: str = ""
    attempt: int = 0
    n: int = 0
    sent_at: float = 0.0
    sessions: dict[int, str] = {}
    """The process that each rank's proposal went to."""
    steps: tuple[int, ...] = ()
    reports: dict[int, ReportState] = {}
    before: float | str | None = None
    """What was in force before it was applied: the LR scale, or the clip."""
    after: float | str | None = None

    @property
    def open(self) -> bool:
        return self.command.state in OPEN_STATES


Send = Callable[[str, Prepare | Ask], None]
"""Send a message to a session."""


class Book:
    """All commands of one run. Times are unix seconds; every change is left in `changed`."""

    def __init__(self, run: str, entries: Sequence[Entry] = ()) -> None:
        self.run = run
        self.entries = {entry.command.id: entry for entry in entries}
        self.changed: dict[str, Entry] = {}
        self.lr_scale = 1.0
        self.clip: float | str | None = None
        self.margin = FIRST_MARGIN
        self._order = max((int(entry.command.id) for entry in entries), default=0)
        for entry in entries:
            self._in_force(entry)

    @property
    def commands(self) -> tuple[Command, ...]:
        """All of them in order of id."""
        return tuple(entry.command for entry in self.entries.values())

    def open(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.open]

    def ask(
        self,
        action: str,
        args: dict[str, Any],
        *,
        asked_by: str,
        why: str,
        now: float,
        allow: Sequence[str],
        finding: int | None = None,
        undo_of: str | None = None,
        approved: bool = True,
    ) -> Entry:
        """Enter a command; with `approved` it goes to the agents at the next `work`, else it waits.

        Raises:
            CommandError: an unknown action, a wrong argument, one that is not allowed, the LR floor.
        """
        try:
            parsed = parse_action(action, args)
        except ValueError as error:
            raise CommandError("bad_request", str(error)) from None
        if action not in allow and "all" not in allow:
            allowed = f"only {', '.join(allow)}" if allow else "no action"
            raise CommandError(
                "forbidden", f"{action} is not allowed in this run: its attach() allows {allowed}"
            )
        if isinstance(parsed, ScaleLr) and parsed.factor and _too_low(self.lr_scale * parsed.factor):
            raise CommandError(
                "bad_request",
                f"the LR scale is {self.lr_scale:g} and × {parsed.factor:g} would take it under "
                f"{LR_FLOOR:g} of the schedule's",
            )
        number = str(len(self.entries) + 1)
        entry = Entry(
            command=Command(
                id=number,
                run=self.run,
                action=action,
                args=action_args(parsed),
                state="proposed",
                asked_by=asked_by,
                why=why,
                asked_at=now,
                finding=finding,
                undo_of=undo_of,
            )
        )
        self.entries[number] = entry
        self._touch(entry)
        if approved:
            self._begin(entry, now)
        return entry

    def approve(self, number: str, by: str, now: float) -> Entry:
        """Raises `CommandError` where the command does not wait for approval."""
        entry = self._get(number)
        if entry.command.state != "proposed":
            raise CommandError("bad_request", f"command {number} is {entry.command.state}, not proposed")
        self._set(entry, asked_by=f"{entry.command.asked_by}, approved by {by}")
        self._begin(entry, now)
        return entry

    def dismiss(self, number: str, by: str, reason: str) -> Entry:
        """Raises `CommandError` where the command does not wait for approval."""
        entry = self._get(number)
        if entry.command.state != "proposed":
            raise CommandError("bad_request", f"command {number} is {entry.command.state}, not proposed")
        self._set(entry, state="dismissed", reason=reason or f"dismissed by {by}")
        return entry

    def undo(self, number: str, by: str, now: float, allow: Sequence[str], why: str = "") -> Entry:
        """Enter the command that takes an applied one back.

        Raises:
            CommandError: it was not applied, or cannot be taken back.
        """
        entry = self._get(number)
        if entry.command.state not in ("applied", "judged"):
            raise CommandError(
                "bad_request", f"command {number} is {entry.command.state}: only an applied one can be undone"
            )
        action, args = self._inverse(entry)
        return self.ask(
            action,
            args,
            asked_by=by,
            why=why or f"undo of {entry.command.action} ({number})",
            now=now,
            allow=allow,
            undo_of=number,
        )

    def judge(self, number: str, outcome: Outcome) -> None:
        """Note what an applied command did."""
        entry = self.entries.get(number)
        if entry is not None and entry.command.state == "applied":
            self._set(entry, state="judged", outcome=outcome)

    def work(self, peers: Sequence[Peer], world_size: int, step_time: float, now: float, send: Send) -> None:
        """Send what waits to be sent, hold failed votes again, let go of what nobody answers."""
        step_time = max(step_time, 1e-6)
        for entry in self.open():
            if entry.command.state == "proposed":
                continue
            if gone := _gone(entry, peers):
                self._set(entry, state="expired", reason=gone)
            elif entry.vote and entry.n == 1 and peers and peers[0].fresh:
                continue  # it lies with the agent, whose next step will apply it: nothing to time out
            elif now - entry.command.asked_at > EXPIRY and now - entry.sent_at > EXPIRY:
                reason = "" if entry.attempt else obstacle(peers, world_size, step_time)
                self._set(entry, state="expired", reason=reason or "no agent answered in time")
            elif not entry.vote and not obstacle(peers, world_size, step_time):
                self._propose(entry, peers, world_size, step_time, now, send)

    def report(self, rank: int, report: Report, now: float) -> Entry | None:
        """Take a rank's report; the entry that it changed."""
        entry = self.entries.get(report.command)
        if entry is None or entry.vote != report.vote:
            return None
        if report.state == "pending" and rank not in entry.reports:
            self.margin = min(max(self.margin, 2 * (now - entry.sent_at)), MAX_MARGIN)
        entry.reports[rank] = report.state
        if entry.n > 1 and report.state in ("pending", "applied"):
            self._set(entry, votes=tuple(sorted({*entry.command.votes, rank})))
        applied = tuple(sorted(r for r, state in entry.reports.items() if state == "applied"))
        if report.state == "applied":
            step = entry.command.step if entry.command.step is not None else (report.steps or (0,))[0]
            self._set(entry, ranks_applied=applied, step=step)
            if len(applied) == 1:
                self._note_force(entry, report)
        self._conclude(entry, applied, report)
        return entry

    def end(self, reason: str) -> None:
        """The run is over: what is still open will not be applied."""
        for entry in self.open():
            self._set(entry, state="expired", reason=reason)

    def begin_session(self) -> None:
        """The agents are new processes: no scale and no clip of ours is in force in them."""
        self.lr_scale, self.clip = 1.0, None

    def resend(self, peer: Peer, now: float, send: Send) -> None:
        """Repeat what an agent may have missed while its link or this daemon was down."""
        for entry in self.open():
            if entry.vote and entry.command.state == "sent" and peer.rank not in entry.reports:
                send(peer.session, self._prepare(entry, peer.session))
                entry.sent_at = now

    # --- inside ---------------------------------------------------------------------------------------

    def _begin(self, entry: Entry, now: float) -> None:
        self._set(entry, state="sent")
        entry.sent_at = now

    def _propose(
        self,
        entry: Entry,
        peers: Sequence[Peer],
        world_size: int,
        step_time: float,
        now: float,
        send: Send,
    ) -> None:
        entry.n = world_size
        entry.vote = uuid.uuid4().hex
        entry.attempt += 1
        entry.sent_at = now
        entry.reports = {}
        entry.sessions = {peer.rank: peer.session for peer in peers}
        entry.steps = ()
        if world_size > 1:
            ahead = max(2, math.ceil(self.margin * 2 ** (entry.attempt - 1) / step_time))
            entry.steps = tuple(
                max(step + math.ceil(peer.age / step_time) for step, peer in zip(steps, peers, strict=True))
                + ahead
                for steps in zip(*(peer.steps for peer in peers), strict=True)
            )
        self._order += 1
        self._set(entry, due=entry.steps[0] if entry.steps else None, votes=())
        for peer in peers:
            send(peer.session, self._prepare(entry, peer.session))

    def confirm(self, compared: Iterable[tuple[int, bool]]) -> None:
        """Note what comparisons after a step, (step, all replicas agreed), say of what was applied at it."""
        agreed = dict(compared)
        for entry in self.entries.values():
            command = entry.command
            if command.step in agreed and command.replicas_agree is None and command.ranks_applied:
                self._set(entry, replicas_agree=agreed[command.step])

    def _prepare(self, entry: Entry, session: str) -> Prepare:
        return Prepare(
            session=session,
            command=entry.command.id,
            vote=entry.vote,
            n=entry.n,
            steps=entry.steps,
            order=self._order,
            action=entry.command.action,
            args=entry.command.args,
        )

    def _conclude(self, entry: Entry, applied: tuple[int, ...], report: Report) -> None:
        states = list(entry.reports.values())
        final = [state for state in states if state != "pending"]
        refusal = next((s for s in states if s in ("refused", "failed")), None)
        if len(applied) >= entry.n:
            self._set(entry, state="applied", reason="")
            self._note_undone(entry)
        elif applied and len(final) >= entry.n:
            self._set(
                entry,
                state="failed",
                reason=f"applied on {len(applied)} of {entry.n} ranks only: {report.reason}".rstrip(": "),
            )
        elif refusal and not applied and (refusal == "refused" or len(final) >= entry.n):
            self._set(
                entry,
                state="refused" if refusal == "refused" else "failed",
                reason=f"rank {_first(entry, refusal)}: {report.reason}" if report.reason else refusal,
            )
        elif "aborted" in states and not applied:  # the verdict is the same for all: one tells
            if entry.attempt < ATTEMPTS:
                entry.vote, entry.reports = "", {}
                self._set(entry, state="sent")
            else:
                self._set(entry, state="expired", reason=f"{entry.attempt} votes failed: {report.reason}")
        elif "pending" in states and entry.command.state == "sent":
            self._set(entry, state="scheduled")
        else:
            self._touch(entry)

    def _note_force(self, entry: Entry, report: Report) -> None:
        action = parse_action(entry.command.action, entry.command.args)
        if isinstance(action, ScaleLr):
            entry.before = self.lr_scale
            scale = 1.0 if action.reset else self.lr_scale * (action.factor or 1.0)
            self.lr_scale = report.numbers.get("lr_scale", scale)
            entry.after = self.lr_scale
        elif isinstance(action, Clip):
            entry.before = self.clip
            self.clip = None if action.off else action.max_norm
            entry.after = self.clip

    def _in_force(self, entry: Entry) -> None:
        if entry.command.state in ("applied", "judged", "undone"):
            if entry.command.action == "scale_lr" and isinstance(entry.after, (int, float)):
                self.lr_scale = float(entry.after)
            elif entry.command.action == "clip":
                self.clip = entry.after

    def _note_undone(self, entry: Entry) -> None:
        undone = self.entries.get(entry.command.undo_of or "")
        if undone is not None and undone.command.state in ("applied", "judged"):
            self._set(undone, state="undone")

    def _inverse(self, entry: Entry) -> tuple[str, dict[str, Any]]:
        action = parse_action(entry.command.action, entry.command.args)
        if isinstance(action, Restart):
            raise CommandError("bad_request", "a restart cannot be undone: the moments it zeroed are gone")
        if isinstance(action, Clip):
            former = entry.before
            return "clip", {"off": True} if former is None else {"max_norm": former}
        before, after = entry.before, entry.after
        if not isinstance(before, (int, float)) or not isinstance(after, (int, float)) or after <= 0:
            raise CommandError("bad_request", f"the scale before command {entry.command.id} is not known")
        target = self.lr_scale * before / after
        if math.isclose(target, 1.0, rel_tol=1e-9):
            return "scale_lr", {"reset": True}
        if before / after > MAX_FACTOR:
            raise CommandError(
                "bad_request",
                f"the scale before was {before:g}, too far from {self.lr_scale:g} for one command",
            )
        return "scale_lr", {"factor": before / after}

    def _get(self, number: str) -> Entry:
        if number not in self.entries:
            raise CommandError("bad_request", f"there is no command {number} in this run")
        return self.entries[number]

    def _set(self, entry: Entry, **changes: Any) -> None:
        entry.command = msgspec.structs.replace(entry.command, **changes)
        self._touch(entry)

    def _touch(self, entry: Entry) -> None:
        self.changed[entry.command.id] = entry


def _gone(entry: Entry, peers: Sequence[Peer]) -> str:
    """Why nobody can apply a command any more: a process that it went to was replaced."""
    for peer in peers:
        if entry.vote and entry.sessions.get(peer.rank, peer.session) != peer.session:
            return f"the process of rank {peer.rank} ended before it applied it"
    return ""


def _too_low(scale: float) -> bool:
    return scale < LR_FLOOR * (1 - 1e-9)  # two cuts of 0.1 reach the floor, and may


def _first(entry: Entry, state: str) -> int:
    return next(rank for rank, was in entry.reports.items() if was == state)
