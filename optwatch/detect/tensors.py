"""What single statistics of the tensors say: dead units, an epsilon that rules, a second moment that lags."""

from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state
from optwatch.detect.spell import Spell
from optwatch.detect.vanishing import median_layer, of_layers, weights
from optwatch.series.points import Points
from optwatch.wire.findings import Kind, Severity

DEAD = 0.9
"""Share of exact zeros in a gradient from which a layer counts as dead (AutoTrainer: 0.7; a batch of few
samples comes near that in healthy nets of ReLUs)."""
EPSILON = 0.5
"""Share of elements with sqrt(v̂) < 10 ε; the median over the layers."""
STALE, LAGGING = 0.15, 2.3
"""RMS_t of the median layer below which v̂ is too large for the gradients that come, and of any layer of
1,000 elements above which it is too small (Wortsman et al. 2023)."""
SAMPLES = 5
LAG_SAMPLES = 2
STEPS = 200
STALE_STEPS = 20

Values = npt.NDArray[np.float64]


class Memory(msgspec.Struct):
    dead: Spell = msgspec.field(default_factory=Spell)
    epsilon: Spell = msgspec.field(default_factory=Spell)
    stale: Spell = msgspec.field(default_factory=Spell)
    lagging: Spell = msgspec.field(default_factory=Spell)


class Tensors:
    """Conditions that hold over consecutive samples; each finding names the layer that shows it most."""

    name: ClassVar[str] = "tensors"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        samples = points.samples
        if samples is None or not len(samples.step):
            return []
        chosen = weights(samples)
        if not chosen.any():
            return []
        signals: list[Signal] = []
        names = [name for name, keep in zip(samples.names, chosen, strict=True) if keep]
        numel = samples.numel[chosen]
        zeros = of_layers(samples, "grad_zeros", chosen) / numel
        epsilon = of_layers(samples, "eps_share", chosen)
        rms_t = of_layers(samples, "rms_t", chosen)
        large = np.where(numel >= 1_000, rms_t, np.nan)
        m = self._memory
        for i, step in enumerate(samples.step.tolist()):
            self._take(
                m.dead, step, "dead_parameters", names, zeros[i], signals,
                holds=bool((zeros[i] >= DEAD).any()), worst=np.fmax,
                text="of the gradient's elements are zero", share=True, samples=SAMPLES, steps=STEPS,
            )  # fmt: skip
            self._take(
                m.epsilon, step, "epsilon_dominated", names, epsilon[i], signals,
                holds=median_layer(epsilon[i]) > EPSILON, worst=np.fmax,
                text="of the elements have sqrt(v̂) < 10 ε", share=True, samples=SAMPLES, steps=STEPS,
            )  # fmt: skip
            self._take(
                m.stale, step, "stale_second_moment", names, rms_t[i], signals,
                holds=median_layer(rms_t[i]) < STALE, worst=np.fmin, key="stale", severity="watch",
                text="is RMS_t: the second moment is too large for the gradients that come",
                samples=SAMPLES, steps=STALE_STEPS,
            )  # fmt: skip
            self._take(
                m.lagging, step, "stale_second_moment", names, large[i], signals,
                holds=bool((large[i] > LAGGING).any()), worst=np.fmax, key="lagging", severity="watch",
                text="is RMS_t: the second moment lags behind gradients that grow",
                samples=LAG_SAMPLES, steps=1,
            )  # fmt: skip
        return signals

    def mark(self, step: int) -> None:
        """Spells that are not open yet begin anew."""
        m = self._memory
        self._memory = Memory(*(spell if spell.open else Spell() for spell in msgspec.structs.astuple(m)))

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _take(
        self,
        spell: Spell,
        step: int,
        kind: Kind,
        names: list[str],
        values: Values,
        signals: list[Signal],
        *,
        holds: bool,
        worst: np.ufunc,
        text: str,
        samples: int,
        steps: int,
        key: str = "",
        severity: Severity = "warning",
        share: bool = False,
    ) -> None:
        if not spell.take(step, holds, samples, steps):
            return
        known = np.flatnonzero(np.isfinite(values))
        extreme = float(worst.reduce(values[known])) if len(known) else float("nan")
        at = int(known[np.argmax(values[known] == extreme)]) if len(known) else 0
        size = f"{extreme:.2g}" if not share else "all" if extreme == 1 else f"{extreme:.1%}"
        signals.append(
            Signal(
                kind=kind,
                step=step,
                onset_step=spell.since,
                severity=severity,
                key=key or kind,
                summary=f"{names[at]}: {size} {text}" if spell.open else "no longer so",
                over=not spell.open,
                tensor=names[at],
                evidence={"value": extreme, "median": median_layer(values), "layers": len(known)},
            )
        )
