"""Commands from the daemon: taken in by the link's thread, applied by the training thread.

A command waits in `pending` until the step pre-hook of its step. With one rank that is the next one.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from optwatch.wire.actions import Action, parse_action
from optwatch.wire.messages import Prepare
from optwatch_agent.actuators import Actuators
from optwatch_agent.vote import Verdict

_VOTES_REMEMBERED = 256

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

    def due(self, optimizer: int, step: int) -> bool:
        """Whether `step` of an optimizer is the one to apply it before."""
        if optimizer in self.applied:
            return False
        return self.prepare.n == 1 or step >= self.prepare.steps[optimizer]


class Arbiter(Protocol):
    """Where the verdict on a command of several ranks comes from."""

    def take(self, pending: Pending) -> None:
        """Vote for a command that is pending now. Called by the link's thread."""
        ...

    def settle(self, pending: Pending) -> Verdict | None:
        """The verdict, at the step itself; None if it cannot be had. Called by the training thread."""
        ...


class Control:
    """The commands of one agent: checked, kept in order, applied, reported."""

    def __init__(
        self, session: str, allow: Sequence[str], actuators: Sequence[Actuators], world_size: int
    ) -> None:
        self.pending: list[Pending] = []
        """In the order of application. Empty nearly always: the step's hook looks at this alone."""
        self.outcomes: deque[Outcome] = deque()
        """For the link's thread to report."""
        self.arbiter: Arbiter | None = None
        self.lost = ""
        self._session = session
        self._allow = tuple(allow)
        self._actuators = actuators
        self._world_size = world_size
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
        if self._world_size > 1 and self.arbiter is None:
            return f"observe only: {self._world_size} ranks have no way to agree on a step"
        return "armed"

    # --- the link's thread ----------------------------------------------------------------------------

    def take(self, prepare: Prepare) -> None:
        """Take in a command, or report why not. One that came before is ignored."""
        if prepare.session != self._session or prepare.vote in self._votes:
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
        pending = Pending(prepare, action)
        with self._lock:
            late = prepare.n > 1 and any(
                now >= due for now, due in zip(self._steps(), prepare.steps, strict=True)
            )
            if not late:
                self.pending = sorted(
                    [*self.pending, pending], key=lambda p: (p.prepare.steps, p.prepare.order)
                )
        if late:
            self._refuse(prepare, "the step of the command had passed")
            return
        if prepare.n > 1:
            assert self.arbiter is not None
            self.arbiter.take(pending)
        self.outcomes.append(Outcome(prepare, "pending"))

    def _refusal(self, prepare: Prepare, action: Action) -> str | None:
        if prepare.action not in self._allow:
            allowed = ", ".join(self._allow) or "nothing"
            return f"attach allows {allowed} here, not {prepare.action}"
        if prepare.n != self._world_size:
            return f"the command is for {prepare.n} ranks, this run has {self._world_size}"
        if prepare.n > 1 and (self.arbiter is None or self.lost):
            return self.state
        if prepare.n > 1 and len(prepare.steps) != len(self._actuators):
            return f"the command names {len(prepare.steps)} steps for {len(self._actuators)} optimizers"
        return next((reason for a in self._actuators if (reason := a.refusal(action))), None)

    def _refuse(self, prepare: Prepare, reason: str) -> None:
        self.outcomes.append(Outcome(prepare, "refused", reason=reason))

    # --- the training thread --------------------------------------------------------------------------

    def apply_due(self, optimizer: int, step: int) -> None:
        """Apply what is due before the update of `step`. Called by the step pre-hook if `pending`."""
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
            verdict: Verdict | None = Verdict.COMMIT
            if pending.prepare.n > 1 and not pending.applied:
                assert self.arbiter is not None
                verdict = self.arbiter.settle(pending)
            if verdict is not Verdict.COMMIT:
                self._drop(pending)
                self.outcomes.append(Outcome(pending.prepare, "aborted", reason=self.lost))
                continue
            try:
                if actuators.needs_wrapper(pending.action):
                    actuators.lr_scale.arm()
                pending.numbers.update(actuators.apply(pending.action))
            except Exception as error:  # noqa: BLE001 - reported, and the run goes on
                self._drop(pending)
                self.outcomes.append(
                    Outcome(pending.prepare, "failed", reason=f"{type(error).__name__}: {error}")
                )
                continue
            pending.applied[optimizer] = step
            if len(pending.applied) == len(self._actuators):
                self._drop(pending)
                steps = tuple(pending.applied[i] for i in range(len(self._actuators)))
                self.outcomes.append(
                    Outcome(pending.prepare, "applied", steps=steps, numbers=pending.numbers)
                )

    def _drop(self, pending: Pending) -> None:
        with self._lock:
            self.pending = [other for other in self.pending if other is not pending]
