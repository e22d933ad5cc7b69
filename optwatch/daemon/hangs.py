"""Hangs: which rank the others wait for.

Nobody can step past the all-reduce of a step, so a rank that stands still stops them all. What tells them
apart is that the culprit is silent, its process stopped or gone, or that it is behind all others: at a
lower step, or in an earlier phase of the same one.
"""

from collections.abc import Iterable, Sequence

import msgspec

from optwatch.daemon.sessions import Rank
from optwatch.detect.base import Signal

PHASES = ("step", "data loading", "before backward", "backward", "after backward")
"""The phases between the begin of a step and that of the next one, in their order."""
SILENT = 5.0
"""Seconds without a message after which a rank on which others wait is named."""
BEHIND = 30.0
"""Seconds without progress after which a rank that is behind all others is named; it may be busy."""


class Standing(msgspec.Struct, frozen=True):
    """Where a rank is. `silence`: seconds since it was heard of."""

    rank: int
    step: int
    phase: str
    silence: float


def standings_of(ranks: Iterable[Rank], now: float) -> list[Standing]:
    """Where the ranks are at the monotonic time `now`, those that left in good order apart."""
    return [
        Standing(
            rank=rank.rank,
            step=rank.session.steps[0] if rank.session.steps else 0,
            phase=rank.session.beat.phase if rank.session.beat else "",
            silence=now - rank.session.heard,
        )
        for rank in ranks
        if not rank.session.left
    ]


class Hangs:
    """Follows how far the ranks of one run are, and says which one holds up the others."""

    def __init__(self) -> None:
        self._reached: dict[int, tuple[int, float]] = {}
        """The step that each rank has reached, and when."""
        self._named: Signal | None = None
        self._named_at = 0.0

    def look(self, standings: Sequence[Standing], now: float) -> Signal | None:
        """Take how the ranks stand, those that left in good order apart; what began or is over."""
        for standing in standings:
            if self._reached.get(standing.rank, (-1, now))[0] != standing.step:
                self._reached[standing.rank] = standing.step, now
        still = min((now - self._reached[s.rank][1] for s in standings), default=0.0)
        culprit = _culprit(standings, still)
        if self._named is not None and self._goes_on(standings):
            signal = Signal(
                kind="stalled_rank",
                step=max((s.step for s in standings), default=self._named.step),
                summary="training goes on" if standings else "the run ended",
                severity="critical",
                onset_step=self._named.onset_step,
                key=self._named.key,
                over=True,
                rank=self._named.rank,
            )
            self._named = None
            return signal
        if culprit is None or self._named is not None:
            return None
        self._named = Signal(
            kind="stalled_rank",
            step=max(s.step for s in standings),
            summary=(
                f"rank {culprit.rank} holds up {len(standings) - 1} others at step {culprit.step}: "
                + (
                    f"nothing was heard of it for {culprit.silence:.0f} s"
                    if culprit.silence >= SILENT
                    else f"it is behind them, in {culprit.phase}, for {still:.0f} s"
                )
            ),
            severity="critical",
            onset_step=culprit.step,
            key=f"rank {culprit.rank}",
            rank=culprit.rank,
            evidence={
                "step": culprit.step,
                "phase": culprit.phase,
                "silence": round(culprit.silence, 1),
                "still": round(still, 1),
            },
        )
        self._named_at = now
        return self._named

    def _goes_on(self, standings: Sequence[Standing]) -> bool:
        """Whether the rank that was named has made a step since, or is no more part of the run."""
        assert self._named is not None
        named = [s.rank for s in standings if s.rank == self._named.rank]
        return not named or self._reached[named[0]][1] > self._named_at


def _culprit(standings: Sequence[Standing], still: float) -> Standing | None:
    """The rank to name, None where none stands out, or where training goes on."""
    if len(standings) < 2 or still < SILENT or max(s.step for s in standings) == 0:
        return None
    heard = [s for s in standings if s.silence < SILENT]
    silent = [s for s in standings if s.silence >= SILENT]
    if not heard:  # the link of all is cut, or the daemon was stopped
        return None
    if silent:
        first = min(silent, key=lambda s: (s.step, -s.silence))
        return first if first.step <= min(s.step for s in heard) else None
    behind, *others = sorted(standings, key=_progress)
    return behind if still >= BEHIND and _progress(behind) < _progress(others[0]) else None


def _progress(standing: Standing) -> tuple[int, int]:
    """How far a rank is: its step, and the phase within it. A phase that is not known comes last."""
    known = standing.phase in PHASES
    return standing.step, PHASES.index(standing.phase) if known else len(PHASES)
