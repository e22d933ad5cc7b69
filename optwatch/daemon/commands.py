"""Commands: from a wish to an applied action, and the trail of who wanted it, why and what came of it.

    proposed → sent → scheduled → applied → judged
    dismissed | refused | expired | failed | undone

With one rank a command goes straight to it and the next step applies it. With more, the daemon only
proposes a step S to all of them and the job's own store decides (see the agent's vote): all apply it at S
or none does, and a vote that failed is held again at a later S, at most `ATTEMPTS` times.
"""

import math
import time
import uuid
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import msgspec

from optwatch.daemon.entries import CommandError, Entry, in_order, prepare
from optwatch.daemon.in_force import LR_FLOOR, InForce
from optwatch.daemon.peers import Peer, obstacle, pace
from optwatch.wire.actions import Command, Outcome, ScaleLr, action_args, parse_action
from optwatch.wire.messages import Ask, News, Prepare, Report

ATTEMPTS = 4
"""A first vote and three more."""
EXPIRY = 30.0
"""Seconds that a command may stay unanswered."""
PATIENCE = 10.0
"""Seconds that something may stand in the way before the command is refused for it."""
FIRST_MARGIN = 0.3
MAX_MARGIN = 10.0
"""Seconds between a proposal and its step: learned from the votes, within these bounds."""
PER_RANK = 0.0005
"""Seconds of it for each rank at least: to tell a thousand takes time, and to hear of their steps did."""
_ANSWERS = 100
"""Votes from which the margin is learned."""
_REPEAT = 1.0
"""Seconds, beside the margin, after which a proposal is repeated to a rank that has said nothing."""

Send = Callable[[str, Prepare | Ask | News], None]
"""Send a message to a session."""


class Book:
    """All commands of one run. Times are `clock.steady`; every change is left in `changed`."""

    def __init__(self, run: str, entries: Sequence[Entry] = ()) -> None:
        self.run = run
        self.entries = {entry.command.id: entry for entry in entries}
        self.changed: dict[str, Entry] = {}
        self.in_force = InForce()
        self._answers: deque[float] = deque(maxlen=_ANSWERS)
        """Seconds from the last proposals to the votes on them."""
        self._order = max((entry.order for entry in entries), default=0)
        for entry in in_order(entries):
            entry.blocked_since = None  # the ranks have yet to greet this daemon
            self.in_force.restore(entry)

    @property
    def commands(self) -> tuple[Command, ...]:
        """All of them in order of id."""
        return tuple(entry.command for entry in self.entries.values())

    @property
    def margin(self) -> float:
        """Seconds from a proposal to its step: twice what 99 % of the last votes took."""
        if not self._answers:
            return FIRST_MARGIN
        ordered = sorted(self._answers)
        slow = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return min(max(2 * slow, FIRST_MARGIN), MAX_MARGIN)

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
        if isinstance(parsed, ScaleLr) and parsed.factor and self.in_force.too_low(parsed.factor):
            raise CommandError(
                "bad_request",
                f"the LR scale is {self.in_force.lr_scale:g} and × {parsed.factor:g} would take it under "
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
                asked_at=time.time(),
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

    def undo(
        self,
        number: str,
        by: str,
        now: float,
        allow: Sequence[str],
        why: str = "",
        resolve: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _action, args: args,
    ) -> Entry:
        """Enter the command that takes an applied one back; `resolve` makes its arguments those of all ranks.

        Raises:
            CommandError: it was not applied, or cannot be taken back.
        """
        entry = self._get(number)
        if entry.command.state not in ("applied", "judged"):
            raise CommandError(
                "bad_request", f"command {number} is {entry.command.state}: only an applied one can be undone"
            )
        action, args = self.in_force.inverse(entry)
        return self.ask(
            action,
            resolve(action, args),
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

    def work(
        self, peers: Sequence[Peer], world_size: int, step_times: Sequence[float], now: float, send: Send
    ) -> None:
        """Send what waits to be sent, hold failed votes again, let go of what nobody answers.

        `step_times`: seconds per step of each optimizer.
        """
        for entry in self.open():
            if entry.command.state == "proposed":
                continue
            if gone := _gone(entry, peers, world_size):
                self._let_go(entry, gone)
            elif entry.vote:
                self._follow_up(entry, peers, now, send)
            elif not (reason := obstacle(peers, world_size, step_times)):
                self._propose(entry, peers, world_size, step_times, now, send)
            else:
                self._wait(entry, reason, now)

    def report(self, rank: int, report: Report, now: float) -> Entry | None:
        """Take a rank's report; the entry that it changed."""
        entry = self.entries.get(report.command)
        if entry is None or entry.vote != report.vote:
            return None
        if report.state == "pending" and rank not in entry.reports and not entry.repeated_at:
            self._answers.append(max(now - entry.sent_at, 0.0))
        entry.reports[rank] = report.state
        if report.state in ("refused", "failed") and not entry.refusal:
            entry.refusal = f"rank {rank}: {report.reason}" if report.reason else report.state
        if report.state == "aborted" and entry.aborted_at is None:
            entry.aborted_at = now
        if entry.n > 1 and report.state in ("pending", "applied"):
            self._set(entry, votes=_with(entry.command.votes, rank))
        applied = entry.command.ranks_applied
        if report.state == "applied":
            applied = _with(applied, rank)
            step = entry.command.step if entry.command.step is not None else (report.steps or (0,))[0]
            self._set(entry, ranks_applied=applied, step=step)
            if len(applied) == 1:
                self.in_force.note(entry, report.numbers)
        self._conclude(entry, applied, report)
        return entry

    def end(self, reason: str) -> None:
        """The run is over: what is still open will not be applied."""
        for entry in self.open():
            self._set(entry, state="expired", reason=reason)

    def begin_session(self, session: str) -> None:
        """What is in force is what this process of rank 0 has applied: nothing in a new one."""
        self.in_force = InForce()
        for entry in in_order(self.entries.values()):
            if entry.sessions.get(0) == session:
                self.in_force.restore(entry)

    def resend(self, peer: Peer, now: float, send: Send) -> None:
        """Repeat what an agent may have missed while its link or this daemon was down.

        Only to the process that it was proposed to: a new one in the same place might be counted as a
        second voter of a vote that its predecessor had already taken part in.
        """
        for entry in self.open():
            same = entry.sessions.get(peer.rank) == peer.session
            if entry.vote and same and peer.rank not in entry.reports:
                send(peer.session, prepare(entry, peer.session))
                entry.repeated_at = now

    # --- inside ---------------------------------------------------------------------------------------

    def _begin(self, entry: Entry, now: float) -> None:
        self._set(entry, state="sent")
        entry.sent_at = now

    def _propose(
        self,
        entry: Entry,
        peers: Sequence[Peer],
        world_size: int,
        step_times: Sequence[float],
        now: float,
        send: Send,
    ) -> None:
        entry.n = world_size
        entry.vote = uuid.uuid4().hex
        entry.attempt += 1
        entry.sent_at, entry.repeated_at, entry.blocked_since, entry.aborted_at = now, 0.0, None, None
        entry.reports, entry.refusal = {}, ""
        entry.sessions = {peer.rank: peer.session for peer in peers}
        entry.steps = ()
        if world_size > 1:
            margin = max(self.margin, PER_RANK * world_size) * 2 ** (entry.attempt - 1)
            entry.steps = tuple(
                _due(steps, [peer.age for peer in peers], pace(step_times, i), margin)
                for i, steps in enumerate(zip(*(peer.steps for peer in peers), strict=True))
            )
        self._order += 1
        entry.order = self._order
        due = entry.steps[0] if entry.steps else None
        self._set(entry, due=due, votes=(), world_size=world_size, reason="")
        for peer in peers:
            send(peer.session, prepare(entry, peer.session))

    def confirm(self, compared: Iterable[tuple[int, bool]]) -> None:
        """Note what comparisons after a step, (step, all replicas agreed), say of what was applied at it."""
        agreed = dict(compared)
        for entry in self.entries.values():
            command = entry.command
            if command.step in agreed and command.replicas_agree is None and command.ranks_applied:
                self._set(entry, replicas_agree=agreed[command.step])

    def _follow_up(self, entry: Entry, peers: Sequence[Peer], now: float, send: Send) -> None:
        """See to a command that was proposed: it lies with the agents, at whose steps it is decided.

        What they hold is not timed out: a training that pauses comes to its step when it goes on.
        """
        if entry.aborted_at is not None and now - entry.aborted_at > _REPEAT:
            self._vote_again(entry)
            return
        there = sum(peer.fresh for peer in peers)
        if there < entry.n:
            if entry.blocked_since is None:
                entry.blocked_since = now
            if now - entry.blocked_since > EXPIRY:
                self._let_go(entry, f"{there} of {entry.n} ranks are connected")
            return
        entry.blocked_since = None
        if entry.n > 1 and not entry.reports and now - entry.sent_at > EXPIRY:
            self._let_go(entry, "no agent answered in time")
        elif entry.n > 1 and now - max(entry.sent_at, entry.repeated_at) > _REPEAT + self.margin:
            for peer in peers:
                self.resend(peer, now, send)

    def _wait(self, entry: Entry, reason: str, now: float) -> None:
        """Something stands in the way of a command; the reason is shown, and after a while it ends."""
        if entry.blocked_since is None:
            entry.blocked_since = now
        if now - entry.blocked_since > PATIENCE:
            state = "expired" if entry.attempt else "refused"
            self._set(entry, state=state, reason=reason)
        elif entry.command.reason != reason:
            self._set(entry, reason=reason)

    def _let_go(self, entry: Entry, reason: str) -> None:
        """It cannot be applied any more, or not on all ranks."""
        if done := len(entry.command.ranks_applied):
            reason = f"applied on {done} of {entry.n} ranks only: {reason}"
        self._set(entry, state="failed" if done else "expired", reason=reason)

    def _conclude(self, entry: Entry, applied: tuple[int, ...], report: Report) -> None:
        states = Counter(entry.reports.values())
        final = len(entry.reports) - states["pending"]
        refusal = next((s for s in states if s in ("refused", "failed")), None)
        if len(applied) >= entry.n:
            self._set(entry, state="applied", reason="")
            self._note_undone(entry)
        elif applied and final >= entry.n:
            self._set(
                entry,
                state="failed",
                reason=f"applied on {len(applied)} of {entry.n} ranks only: {report.reason}".rstrip(": "),
            )
        elif refusal and not applied and (refusal == "refused" or final >= entry.n):
            self._set(entry, state=refusal, reason=entry.refusal)
        elif "aborted" in states and not applied and entry.open:
            # The verdict is the same for all, but who is still to speak may be the one that refuses.
            self._set(entry, reason=report.reason or entry.command.reason)
            if final >= entry.n:
                self._vote_again(entry)
        elif "pending" in states and entry.command.state == "sent":
            self._set(entry, state="scheduled")
        else:
            self._touch(entry)

    def _vote_again(self, entry: Entry) -> None:
        """Hold the vote again that has failed, if it may be."""
        if entry.attempt < ATTEMPTS:
            entry.vote, entry.reports, entry.refusal, entry.aborted_at = "", {}, "", None
            self._set(entry, state="sent")
        else:
            reason = f"{entry.attempt} votes failed: {entry.command.reason}"
            self._set(entry, state="expired", reason=reason)

    def _note_undone(self, entry: Entry) -> None:
        undone = self.entries.get(entry.command.undo_of or "")
        if undone is not None and undone.command.state in ("applied", "judged"):
            self._set(undone, state="undone")

    def _get(self, number: str) -> Entry:
        if number not in self.entries:
            raise CommandError("bad_request", f"there is no command {number} in this run")
        return self.entries[number]

    def _set(self, entry: Entry, **changes: Any) -> None:
        entry.command = msgspec.structs.replace(entry.command, **changes)
        self._touch(entry)

    def _touch(self, entry: Entry) -> None:
        self.changed[entry.command.id] = entry


def _due(steps: Sequence[int], ages: Sequence[float], step_time: float, margin: float) -> int:
    """The step of a vote: `margin` seconds, and two steps at least, after the one that the ranks are at.

    They are at the same one, or nearly: what is thought of the one in the middle, whose steps are `ages` old,
    is nearer to the truth than the most that is thought of any.
    """
    reached = median(step + age / step_time for step, age in zip(steps, ages, strict=True))
    return math.ceil(max(reached, *steps) + max(margin / step_time, 2.0))


def _with(ranks: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Ranks in order, and one more. There may be a thousand, and each of them reports."""
    at = bisect_left(ranks, rank)
    return ranks if ranks[at : at + 1] == (rank,) else (*ranks[:at], rank, *ranks[at:])


def _gone(entry: Entry, peers: Sequence[Peer], world_size: int) -> str:
    """Why nobody can apply a command any more: a process that it went to was replaced, or has no heir.

    Also between two votes: what was asked of a job is not done to the one that its launcher starts anew.
    """
    now = {peer.rank: peer.session for peer in peers}
    for rank, session in entry.sessions.items():
        if now.get(rank, session) != session or rank >= world_size:
            return f"the process of rank {rank} ended before it applied it"
    return ""
