"""Commands from the daemon: taken in by the link's thread, applied by the training thread.

A command waits in `pending` until the step pre-hook of its step. With one rank that is the next one. With
several the ranks vote (`vote`): a command is pending before this rank votes for it, and its step decides.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from optwatch.wire.actions import Action, Stop, parse_action
from optwatch.wire.messages import Prepare
from optwatch_agent.actuators import Actuators
from optwatch_agent.arbiter import SETTLE_TIMEOUT, Ballot
from optwatch_agent.membership import Membership
from optwatch_agent.signals import let_through
from optwatch_agent.vote import Verdict

log = logging.getLogger("optwatch")

_VOTES_REMEMBERED = 256
_LATE = "the step of the command had passed"

ReportState = Literal["pending", "applied", "aborted", "refused", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a command here; it goes out as a `Report`."""

    prepare: Prepare
    state: ReportState
    steps: tuple[int, ...] = ()
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class Pending:
    """A command that waits for its step on each optimizer. `applied` holds the steps, by optimizer."""

    prepare: Prepare
    action: Action
    applied: dict[int, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    armed: set[int] = field(default_factory=set)
    ballot: Ballot | None = None
    """The vote of several ranks, None for a rank that is alone."""

    def due(self, optimizer: int, step: int) -> bool:
        """Whether `step` of an optimizer is the one to apply it before."""
        if optimizer in self.applied:
            return False
        return self.prepare.n == 1 or step >= self.prepare.steps[optimizer]


class ControlLost(RuntimeError):
    """The job's store did not answer at the step of a command: other ranks may have applied it.

    Raised into the training loop with `strict=True` only.
    """


class Control:
    """The commands of one agent: checked, kept in order, applied, reported."""

    def __init__(
        self,
        session: str,
        allow: Sequence[str],
        actuators: Sequence[Actuators],
        membership: Membership,
        strict: bool,
    ) -> None:
        self.pending: list[Pending] = []
        """In the order of application. Empty nearly always: the step's hook looks at this alone."""
        self.behind: dict[int, list[Pending]] = {}
        """What the step that is under way applies after its update, by optimizer: steps of several may be
        under way at a time."""
        self.outcomes: deque[Outcome] = deque()
        """For the link's thread to report."""
        self.lost = ""
        """Why no more commands are taken, "" while they are."""
        self.stopped = False
        """Whether a `stop` has taken effect, on all optimizers."""
        self._session = session
        self._allow = tuple(allow)
        self._actuators = actuators
        self._membership = membership
        self._strict = strict
        self._lock = threading.Lock()
        self._votes: deque[str] = deque(maxlen=_VOTES_REMEMBERED)
        self._steps: Callable[[], tuple[int, ...]] = lambda: ()

    def follow(self, steps: Callable[[], tuple[int, ...]]) -> None:
        """Where to read the step of each optimizer that is under way or was last completed."""
        self._steps = steps

    @property
    def state(self) -> str:
        """ "armed", or why commands cannot be taken."""
        if self.lost:
            return self.lost
        if not self._allow:
            return "observe only: attach was given allow=()"
        return self._membership.state

    # --- the link's thread ----------------------------------------------------------------------------

    def take(self, prepare: Prepare) -> None:
        """Take in a command, or report why not. One that came before is ignored."""
        if prepare.session != self._session or self._had(prepare.vote):
            return
        self._votes.append(prepare.vote)
        try:
            action = parse_action(prepare.action, prepare.args)
        except ValueError as error:
            self._refuse(prepare, str(error))
            return
        if reason := self._refusal(prepare, action):
            self._refuse(prepare, reason)
            return
        if not all(actuators.hold(prepare.vote, action) for actuators in self._actuators):
            self._refuse(prepare, "what it needs was given up meanwhile")
            return
        if prepare.n == 1:
            self.outcomes.append(Outcome(prepare, "pending"))
            self._put(Pending(prepare, action))
        else:
            self._vote(Pending(prepare, action, ballot=Ballot(prepare.vote, prepare.n)))

    def _had(self, vote: str) -> bool:
        """Whether a vote came before: to take part twice would stand in for a rank that is missing.

        Of those that are over, the last ones are enough: the step of an older one has passed.
        """
        return vote in self._votes or any(pending.prepare.vote == vote for pending in self.pending)

    def _put(self, pending: Pending) -> None:
        def place(pending: Pending) -> tuple[tuple[int, ...], int, str]:
            return pending.prepare.steps, pending.prepare.order, pending.prepare.vote

        with self._lock:
            self.pending = sorted([*self.pending, pending], key=place)

    def _vote(self, pending: Pending) -> None:
        """Vote for a command if none of its steps has begun.

        First it is pending, then the steps are read: the training thread moves its step on before it
        looks at `pending`, so a step that begins in between is seen here, or sees the command there.
        """
        arbiter, ballot = self._membership.arbiter, pending.ballot
        assert arbiter is not None
        assert ballot is not None
        self._put(pending)
        if any(now >= due for now, due in zip(self._steps(), pending.prepare.steps, strict=True)):
            self._drop(pending)
            arbiter.oppose(ballot)
            self.outcomes.append(Outcome(pending.prepare, "aborted", reason=_LATE))
            return
        arbiter.favour(ballot)
        self.outcomes.append(Outcome(pending.prepare, "pending"))

    def _refusal(self, prepare: Prepare, action: Action) -> str | None:
        if prepare.action not in self._allow:
            allowed = ", ".join(self._allow) or "nothing"
            return f"attach allows {allowed} here, not {prepare.action}"
        if self.state != "armed":
            return self.state
        ranks = self._membership.who.world_size
        if prepare.n != ranks:
            return f"the command is for {prepare.n} ranks, this run has {ranks}"
        if prepare.n > 1 and len(prepare.steps) != len(self._actuators):
            return f"the command names {len(prepare.steps)} steps for {len(self._actuators)} optimizers"
        return next((reason for a in self._actuators if (reason := a.refusal(action, ranks))), None)

    def _refuse(self, prepare: Prepare, reason: str) -> None:
        arbiter = self._membership.arbiter
        if prepare.n > 1 and arbiter is not None:
            arbiter.oppose(Ballot(prepare.vote, prepare.n))
        self.outcomes.append(Outcome(prepare, "refused", reason=reason))

    # --- the training thread --------------------------------------------------------------------------

    def apply_due(self, optimizer: int, step: int) -> None:
        """Apply what is due before the update of `step`. Called by the step pre-hook if `pending`."""
        self.behind.pop(optimizer, None)
        with self._lock:
            entries = [pending for pending in self.pending if pending.due(optimizer, step)]
        for pending in entries:
            actuators = self._actuators[optimizer]
            if (
                pending.prepare.n == 1
                and actuators.needs_wrapper(pending.action)
                and not actuators.lr_scale.ready
                and optimizer not in pending.armed
            ):
                # From the next step on the lr also comes back when the step raises. What was ordered
                # after it waits too: a restart before the cut of an LR that is too high does harm.
                pending.armed.add(optimizer)
                actuators.lr_scale.arm()
                break
            if not self._settled(pending):
                if self._strict and self.lost:
                    raise ControlLost(self.lost)
                continue
            if actuators.needs_wrapper(pending.action):
                actuators.lr_scale.arm()
            if actuators.follows_update(pending.action):
                self.behind.setdefault(optimizer, []).append(pending)
            else:
                self._apply(pending, optimizer, step)

    def apply_behind(self, optimizer: int, step: int) -> None:
        """Apply what `apply_due` left for after the update. Called by the step post-hook if `behind`."""
        for pending in self.behind.pop(optimizer, ()):
            self._apply(pending, optimizer, step)

    def _apply(self, pending: Pending, optimizer: int, step: int) -> None:
        try:
            pending.numbers.update(self._actuators[optimizer].apply(pending.action, step))
        except Exception as error:  # noqa: BLE001 - reported, and the run goes on
            self._drop(pending)
            self.outcomes.append(
                Outcome(pending.prepare, "failed", reason=f"{type(error).__name__}: {error}")
            )
            let_through(error)
            return
        pending.applied[optimizer] = step
        if len(pending.applied) == len(self._actuators):
            self._drop(pending)
            self.stopped = self.stopped or isinstance(pending.action, Stop)
            steps = tuple(pending.applied[i] for i in range(len(self._actuators)))
            self.outcomes.append(Outcome(pending.prepare, "applied", steps=steps, numbers=pending.numbers))

    def give_up(self, reason: str, timeout: float = SETTLE_TIMEOUT) -> None:
        """Take no more commands, and let go of those that wait: the rank will not reach their steps.

        Waits for the job's store for `timeout` seconds at most, in all.
        """
        self.lost = self.lost or reason
        end = time.monotonic() + timeout
        arbiter = self._membership.arbiter
        for pending in tuple(self.pending):
            if arbiter is not None and pending.ballot is not None and pending.ballot.verdict is None:
                arbiter.oppose(pending.ballot)
        for pending in tuple(self.pending):
            if pending.ballot is None:
                self._drop(pending)
                self.outcomes.append(Outcome(pending.prepare, "refused", reason=reason))
            elif self._settled(pending, max(end - time.monotonic(), 0.0)):
                self._drop(pending)
                self.outcomes.append(Outcome(pending.prepare, "failed", reason=reason))

    def _settled(self, pending: Pending, timeout: float = SETTLE_TIMEOUT) -> bool:
        """Whether a command is to be applied now: True for a rank alone, else the verdict of all."""
        if pending.ballot is None or pending.applied:
            return True
        arbiter = self._membership.arbiter
        assert arbiter is not None
        verdict = arbiter.settle(pending.ballot, timeout)
        if verdict is Verdict.COMMIT:
            return True
        self._drop(pending)
        if verdict is Verdict.ABORT:
            self.outcomes.append(Outcome(pending.prepare, "aborted", reason="not all ranks were in time"))
            return False
        # Other ranks may see a COMMIT that this one cannot. Nothing right can be done about it here.
        self.lost = f"control lost: {arbiter.lost}"
        self.outcomes.append(Outcome(pending.prepare, "failed", reason=self.lost))
        log.warning("optwatch: command %s skipped, %s", pending.prepare.command, self.lost)
        return False

    def _drop(self, pending: Pending) -> None:
        with self._lock:
            self.pending = [other for other in self.pending if other is not pending]
        for actuators in self._actuators:
            actuators.let_go(pending.prepare.vote)
