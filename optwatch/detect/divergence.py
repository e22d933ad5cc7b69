"""Divergence: the loss leaves the range it has had, or the gradient leaves its own.

One excursion is one finding, that grows more severe as evidence comes in: a gradient out of its range
(`exploding_gradient`, watch; warning once the loss confirms it; info in the end where it was huge), a loss
out of its range (`loss_spike`, watch; info once it came back, warning if it has not after 20 points), a loss
that stays out of it (`divergence`, critical).

A loss that jumps from one step to the next while gradient and LR are as usual was not thrown by the weights:
other data came. As long as it falls from there it is shown quietly.
"""

import math
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.memory import (
    BATCH,
    FIRST,
    HUGE,
    SINGLY,
    Blocks,
    from_state,
    median,
    push,
    rows,
    to_state,
    trend,
)
from optwatch.detect.ranges import Course, LossRange, NormRange
from optwatch.series.points import Column, Points
from optwatch.wire.findings import Severity

LONG_RUN, SHORT_RUN = 2, 4
"""Hot points in a row that make a divergence: out of the long range (200), or out of the short one (20).

Four are asked of the short range, since two in a row come by chance under heavy-tailed minibatch noise.
"""
AT_ONCE = 4.0
"""One of the first five losses over so many times the first is a divergence at once."""
BACK = 5
"""Points in a row within the range before the excursion, after which it is over."""
PATIENCE = 20
"""Points after which a spike that has not come back is an alarm,"""
NOT_BACK = 0.02
"""where it still takes away more than this share of what the run had won."""
REGAINED = 0.05
"""A divergence is over once all but this share of what the run had won is won back (as in `regain`)."""
RECOVERY, GROUPS, FALL = 200, 20, -1.645
"""Points after an action over which the loss falls (Mann-Kendall at 5 %) if it recovers."""
RECOVERED = 0.1
"""It has then won back this share, at least, of what it had lost."""
GRACE = 50
"""Points after a planned change in which the loss may go anywhere up to ten times its start."""
CALM, RAISED, SETTLED = 5.0, 1.5, 50
"""A gradient norm below so many times its median, and an LR that has not risen by such a factor for so many
points, are as usual."""
FURTHER = 1.5
"""A loss that rises to so many times its jump goes on by itself."""
SHIFT_PATIENCE = 100
"""Points within which a loss that jumped has to fall (Mann-Kendall at 5 %) and to recover, as above."""
LASTING = 100.0
"""A gradient norm over so many times its median is told of though the loss stayed: the moments hold it."""
CONFIRM, CONFIRMED = 10, 2
"""Points within which the loss confirms a gradient out of its range, by so many hot points in a row.

One alone is what a batch with an outlier does.
"""


class Excursion(msgspec.Struct):
    """One that is going on."""

    kind: Literal["exploding_gradient", "loss_spike", "divergence"]
    onset: int
    level: float
    """The greatest loss of the last 20 points before it; where there were fewer, what is hot."""
    best: float
    first: float
    short_limit: float
    long_limit: float
    severity: Severity = "watch"
    told: bool = False
    peak: float = -math.inf
    norm_ratio: float = 0.0
    short_run: int = 0
    long_run: int = 0
    back: int = 0
    age: int = 0
    losses: list[float] = []
    calm: bool = False
    """Whether it is a jump of the loss alone so far,"""
    jump: float = 0.0
    """over the level before by so much,"""
    course: Blocks = msgspec.field(default_factory=lambda: Blocks(most=40, size=5))
    """and what came since."""
    since_action: Blocks | None = None
    """The course of the loss since the last action."""


class Memory(msgspec.Struct):
    loss: LossRange = msgspec.field(default_factory=LossRange)
    norm: NormRange = msgspec.field(default_factory=NormRange)
    since_norm: int = CONFIRM
    """Points with a loss since the gradient was out of its range."""
    norm_ratio: float = 0.0
    newest_norm: float = math.nan
    """The gradient norm of the newest point, NaN where it has none."""
    lr: float = 0.0
    since_rise: int = 0
    """Points since the LR rose."""
    excursion: Excursion | None = None


class Divergence:
    """Excursions of the loss and the gradient norm, from the fifth point on (`ranges` has the formulas)."""

    name: ClassVar[str] = "divergence"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        loss, norm, lr = points.column("loss"), points.column("grad_norm"), points.column("lr")
        signals: list[Signal] = []
        at = 0
        while at < len(points):
            at += self._calm(*(Column(c.values[at:], c.logged[at:]) for c in (loss, norm, lr)))
            for step, x, has_loss, g, has_norm, rate in rows(
                at, points.step, loss.values, loss.logged, norm.values, norm.logged, lr.values
            ):
                self._rate(rate)
                self._memory.newest_norm = math.nan
                if has_norm and math.isfinite(g):
                    self._norm(g)
                if has_loss:
                    self._loss(step, x, signals)
            at += SINGLY
        return signals

    def mark(self, step: int) -> None:
        """The ranges begin anew, L0 stays. What is open stays so until the loss is back where it was."""
        excursion = self._memory.excursion
        loss = self._memory.loss
        self._memory = Memory(
            loss=LossRange(grace=GRACE, first=loss.first, best=loss.best),
            lr=self._memory.lr,
            since_rise=self._memory.since_rise,
        )
        if excursion is not None and excursion.kind != "exploding_gradient":
            self._memory.excursion = excursion

    def acted(self, step: int) -> None:
        """What is open is over, too, once the loss falls steadily from here on."""
        if (excursion := self._memory.excursion) is not None:
            excursion.since_action = Blocks()

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _calm(self, loss: Column, norm: Column, lr: Column) -> int:
        """Take all at once, as many of the first points as surely begin no excursion; how many."""
        m = self._memory
        if len(loss.values) < BATCH or m.excursion is not None or m.since_norm < 0:
            return 0
        losses, norms = np.flatnonzero(loss.logged), np.flatnonzero(norm.logged & np.isfinite(norm.values))
        x, g = loss.values[losses], norm.values[norms]
        calm = len(loss.values)
        if len(x) and (quiet := m.loss.quiet(x)) < len(x):
            calm = int(losses[quiet])
        course: Course = ()
        if len(g):
            quiet, course = m.norm.quiet(g)
            calm = min(calm, int(norms[quiet])) if quiet < len(g) else calm
        before = int(np.searchsorted(losses, calm))
        m.loss.extend(x[:before])
        m.norm.extend(g[: int(np.searchsorted(norms, calm))], course)
        m.since_norm += before
        known = np.flatnonzero(np.isfinite(lr.values[:calm]))
        m.since_rise += calm
        if len(known):
            rates = lr.values[known]
            risen = known[rates > RAISED * np.concatenate(([m.lr], rates[:-1]))]
            if len(risen):
                m.since_rise = calm - 1 - int(risen[-1])
            m.lr = float(rates[-1])
        return calm

    def _rate(self, rate: float) -> None:
        memory = self._memory
        memory.since_rise += 1
        if math.isfinite(rate):
            if rate > RAISED * memory.lr:
                memory.since_rise = 0
            memory.lr = rate

    def _norm(self, g: float) -> None:
        memory = self._memory
        memory.newest_norm = g
        ratio = 0.0
        if memory.norm.hot(g):
            memory.since_norm = -1
            ratio = memory.norm.ratio(g)
            memory.norm_ratio = ratio
        excursion = memory.excursion
        if excursion is not None and ratio > excursion.norm_ratio:
            excursion.norm_ratio = ratio

    def _loss(self, step: int, x: float, signals: list[Signal]) -> None:
        memory = self._memory
        ranges = memory.loss
        memory.since_norm += 1
        finite = math.isfinite(x)
        hot, limit = False, math.inf
        if not finite or x > ranges.quiet_limit():
            short_limit, long_limit = ranges.limits()
            hot, limit = not finite or x > short_limit, short_limit
        excursion = memory.excursion
        if excursion is None and ranges.seen and (hot or memory.since_norm == 0):
            short_limit, long_limit = ranges.limits()
            excursion = memory.excursion = Excursion(
                kind="loss_spike" if hot else "exploding_gradient",
                onset=step,
                level=ranges.short.high if ranges.seen >= PATIENCE else long_limit,
                best=ranges.best,
                first=ranges.first,
                short_limit=short_limit,
                long_limit=long_limit,
                norm_ratio=memory.norm_ratio if memory.since_norm < CONFIRM else 0.0,
            )
            excursion.jump = x - excursion.level if finite else math.inf
            excursion.calm = finite and hot and ranges.seen > SETTLED < memory.since_rise
        if excursion is not None:
            self._follow(excursion, step, x if finite else math.inf, signals)
        if finite:
            ranges.add(x, limit)

    def _follow(self, excursion: Excursion, step: int, x: float, signals: list[Signal]) -> None:
        """Take one more loss of an excursion, and say what became of it."""
        e = excursion
        e.age += 1
        e.peak = max(e.peak, x)
        e.long_run = e.long_run + 1 if x > e.long_limit else 0
        e.short_run = e.short_run + 1 if x > e.short_limit else 0
        e.back = e.back + 1 if x <= e.level else 0
        push(e.losses, min(x, 1e300), PATIENCE)
        before = e.kind, e.severity, e.told
        if e.calm:
            usual = e.age > PATIENCE or self._usual_norm()
            e.calm = usual and x - e.level < FURTHER * e.jump and self._falls(e, x)
        at_once = (
            self._memory.loss.seen < FIRST and not self._memory.loss.grace and x > AT_ONCE * abs(e.first)
        )
        if e.calm:
            e.told = e.told or e.age >= PATIENCE
        elif at_once or e.long_run >= LONG_RUN or e.short_run >= SHORT_RUN:
            e.kind, e.severity = "divergence", "critical"
        elif e.kind != "divergence" and e.short_run and self._memory.since_norm < CONFIRM:
            e.kind = "exploding_gradient"
            if e.short_run >= CONFIRMED:
                e.severity = "warning"
        elif (
            e.kind != "divergence"
            and e.peak > e.short_limit
            and e.age >= PATIENCE
            and not self._regained(e, NOT_BACK)
        ):
            e.severity = "warning"
        e.told = e.told or e.severity != "watch" or e.long_run > 0 or e.kind == "exploding_gradient"
        back = e.back >= BACK and (e.kind != "exploding_gradient" or e.age >= CONFIRM)
        regained = e.kind == "divergence" and e.age >= PATIENCE and self._regained(e, REGAINED)
        recovers = e.kind == "divergence" and self._recovers(e, x)
        over = back or regained or recovers
        if over:
            self._memory.excursion = None
            if (e.peak > e.short_limit or e.norm_ratio > LASTING) and e.severity == "watch":
                e.severity = "info"
        if e.told and (over or (e.kind, e.severity, e.told) != before):
            signals.append(self._signal(e, step, over))

    def _usual_norm(self) -> bool:
        """Whether the newest point has a gradient norm, and one that is as usual."""
        return self._memory.norm.newest_ratio(self._memory.newest_norm) < CALM

    def _falls(self, e: Excursion, x: float) -> bool:
        """Whether a loss that jumped falls, or may still do so. Takes one more loss."""
        if not e.course.add(min(x, HUGE)) or e.age < SHIFT_PATIENCE:
            return True
        won_back = e.course.means[-1] - e.level < (1 - RECOVERED) * e.jump
        return won_back and trend(e.course.means) < FALL

    def _regained(self, e: Excursion, but: float) -> bool:
        """Whether what the run had won before is won back, but for this share."""
        return median(e.losses[-PATIENCE:]) <= e.level + but * max(e.first - e.level, 0.0)

    def _recovers(self, e: Excursion, x: float) -> bool:
        """Whether the loss, below its start again, falls steadily since an action. Takes one more loss."""
        if e.since_action is None:
            return False
        if not math.isfinite(x):
            e.since_action = Blocks()
            return False
        if not e.since_action.add(min(x, HUGE)):
            return False
        points = len(e.since_action.means) * e.since_action.size
        course = e.since_action.last(max(RECOVERY, points // 2), GROUPS)
        if not course or trend(course) >= FALL:
            return False
        lost = e.since_action.means[0] - e.level
        return course[-1] < min(e.first, e.level + (1 - RECOVERED) * lost)

    def _signal(self, e: Excursion, step: int, over: bool) -> Signal:
        won = e.first - e.best
        lost = (e.peak - e.level) / won if won > 0 and math.isfinite(e.peak) else math.inf
        evidence: dict[str, float | int | str] = {
            "loss_before": e.level,
            "loss_limit": e.long_limit,
            "loss_peak": e.peak,
            "progress_lost": lost,
            "points_out": e.age - e.back,
        }
        if e.norm_ratio:
            evidence["norm_over_median"] = e.norm_ratio
        return Signal(
            kind=e.kind,
            step=step,
            onset_step=e.onset,
            severity=e.severity,
            summary=_summary(e, over),
            over=over,
            evidence=evidence,
        )


def _summary(e: Excursion, over: bool) -> str:
    if over and e.back >= BACK:
        return f"came back after {e.age - e.back} points"
    if over:
        return f"the loss recovers: {median(e.losses[-PATIENCE:]):.4g} after {e.age} points"
    parts = []
    if e.norm_ratio:
        parts.append(f"gradient norm {e.norm_ratio:.3g} × its median")
    if e.peak > e.short_limit:
        peak = f"{e.peak:.4g}" if math.isfinite(e.peak) else "non-finite"
        parts.append(f"loss up to {peak}, at most {e.level:.4g} before")
    return ", ".join(parts) or "gradient energy out of its range"
