"""What the policy of a run keeps in mind between two turns."""

from typing import Any

import msgspec

from optwatch.policy.planned import Plans
from optwatch.wire.actions import Verdict
from optwatch.wire.findings import Finding


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """One command that the policy wants. `send`: at once (auto); else it waits for approval (advise)."""

    action: str
    args: dict[str, Any]
    why: str
    finding: int | None = None
    undo_of: str | None = None
    send: bool = False


class Intervention(msgspec.Struct):
    """The answer to a finding that is under way: the commands that a rule asked for together."""

    rule: str
    finding: int
    onset: int
    asked: int
    """The run's step when it was proposed."""
    former_lr: float
    actions: int
    """How many commands it asked for."""
    commands: list[str] = []
    verdicts: list[Verdict] = []


class Memory(msgspec.Struct):
    """What the engine knows beside the history of the loss."""

    open: dict[int, Finding] = {}
    """Findings that call for an answer."""
    onsets: dict[str, list[int]] = {}
    """Of each kind that calls for an answer, where its last findings began."""
    passed: dict[int, Finding] = {}
    """Findings that came to light as they ended: for one cooldown they call for an answer, too."""
    dealt: set[int] = set()
    """Those of them that were answered."""
    converged: set[int] = set()
    marks: list[int] = []
    current: Intervention | None = None
    asked: int | None = None
    """The run's step at the last proposal."""
    used: dict[str, int] = {}
    """How often each rule acted since an intervention last helped."""
    failures: int = 0
    trials: dict[str, int] = {}
    """Commands to be judged, and the step at which each was applied."""
    verdicts: dict[str, Verdict] = {}
    until_back: dict[str, float] = {}
    """LR cuts to be taken back when the LR is down at this value again."""
    undone: set[str] = set()
    """Commands whose undoing was proposed."""
    plans: Plans = msgspec.field(default_factory=Plans)
    """What is scheduled."""
    stopped: str = ""

    def usual(self, scale: float) -> float:
        """What is left of the LR where it is brought to what the optimizer is used with, for the hint that
        asks for the least; 1 where none is open, or the scale in force does so already."""
        return min(
            (
                usual / (lr * scale)
                for finding in self.open.values()
                if any(cause.cause == "lr_too_high" for cause in finding.causes)
                and isinstance(lr := finding.evidence.get("lr"), int | float)
                and isinstance(usual := finding.evidence.get("usual"), int | float)
                and lr * scale > usual * (1 + 1e-9)
            ),
            default=1.0,
        )
