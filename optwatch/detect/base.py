"""What a detector is, and what it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from optwatch.series.points import Points
from optwatch.wire.findings import Cause, Kind, Remedy, Severity


@dataclass(frozen=True)
class Signal:
    """What a detector reports at a step: that something began, changed, or is over.

    `key` tells the detector's own findings apart (a tensor's name, a rank, or ""). A first signal of a
    key opens a finding; further ones update it (a higher severity, newer evidence); `over` resolves it,
    and a later one with the same key opens a new finding.
    """

    kind: Kind
    step: int
    summary: str
    severity: Severity
    onset_step: int
    key: str = ""
    over: bool = False
    rank: int | None = None
    tensor: str | None = None
    group: int | None = None
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    causes: tuple[Cause, ...] = ()
    remedies: tuple[Remedy, ...] = ()


class Detector(Protocol):
    """Fed with the points of one series in order, in chunks of any size; the cut makes no difference.

    It never raises on any numbers, keeps bounded memory, and its `state` (plain values that msgpack can
    carry) restores it exactly.
    """

    name: ClassVar[str]

    def update(self, points: Points) -> list[Signal]:
        """Take the next points; what they show, in order of step."""
        ...

    def mark(self, step: int) -> None:
        """A planned change at `step` (a curriculum stage, a restart): begin a new segment."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same detector and version.

        Raises:
            ValueError: it is not one.
        """
        ...


@runtime_checkable
class Concerned(Protocol):
    """A detector to which an applied action makes a difference."""

    def acted(self, step: int) -> None:
        """An action was applied; the points from `step` on come next."""
        ...
