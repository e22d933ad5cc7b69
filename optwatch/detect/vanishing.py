"""Vanishing gradients: the gradient shrinks towards the first layers until they no longer learn."""

import re
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.detect.memory import from_state, to_state, trend
from optwatch.detect.spell import Spell
from optwatch.series.points import Points, Samples

LEAST_NUMEL = 100
"""Elements of a tensor that counts as a layer's weights: biases and scales of norms are left out."""
LEAST_TENSORS = 4
PROFILE, FLOOR = 1e-3, 1e-4
"""The first third's gradient below so much of the last third's, and below this in itself."""
RISE = 1.645
"""One-sided 5 % of the Mann-Kendall statistic over depth: a decay, not one odd layer."""
LAYER = 1e-2
"""A layer's update/param and gradient below so much of the median layer's."""
SAMPLES, STEPS, LAYER_STEPS = 5, 50, 200
BINS = 20
SPARSE = re.compile(r"emb|wte|wpe|token|vocab", re.IGNORECASE)
"""Names of tensors whose gradient is sparse by nature."""


def weights(samples: Samples) -> npt.NDArray[np.bool_]:
    """Which tensors are the weights of a layer whose gradient is dense."""
    dense = np.array([not SPARSE.search(name) for name in samples.names], bool)
    return dense & (samples.numel >= LEAST_NUMEL)


def of_layers(samples: Samples, name: str, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """A statistic or a count of the chosen tensors at each sample, f8[k, chosen]; NaN where there is none."""
    block = samples.stats.get(name, samples.counts.get(name))
    if block is None:
        return np.full((len(samples.step), int(chosen.sum())), np.nan)
    return block[:, chosen].astype(np.float64)


def median_layer(values: npt.NDArray[np.float64]) -> float:
    """The median over the layers for which a number is known, NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


class Memory(msgspec.Struct):
    profile: Spell = msgspec.field(default_factory=Spell)
    layers: dict[str, Spell] = {}


class Vanishing:
    """Two signs, of the weights in the order of depth:

    the gradient's rms decays towards the input (Mann-Kendall over depth), the median of the first third
    being < 1e-3 of that of the last third and < 1e-4 (AutoTrainer, Zhang et al. 2021), for 50 steps; or
    one layer's update/param ratio and gradient are both < 1e-2 of the median layer's for 200 steps. Five
    samples show it, or two that are 200 steps apart where the ratio is below the square of its limit.
    """

    name: ClassVar[str] = "vanishing"

    def __init__(self) -> None:
        self._memory = Memory()

    def update(self, points: Points) -> list[Signal]:
        samples = points.samples
        if samples is None or "grad_rms" not in samples.stats:
            return []
        chosen = np.flatnonzero(weights(samples))
        if len(chosen) < LEAST_TENSORS:
            return []
        signals: list[Signal] = []
        names = [samples.names[i] for i in chosen]
        gradients = samples.stats["grad_rms"][:, chosen].astype(np.float64)
        ratios = (
            samples.stats["update_rms"][:, chosen].astype(np.float64) / samples.stats["param_rms"][:, chosen]
            if {"update_rms", "param_rms"} <= samples.stats.keys()
            else np.full(gradients.shape, np.nan)
        )
        for step, gradient, ratio in zip(samples.step.tolist(), gradients, ratios, strict=True):
            self._profile(step, names, gradient, signals)
            self._layers(step, names, gradient, ratio, signals)
        return signals

    def mark(self, step: int) -> None:
        """A spell that is not open yet begins anew."""
        m = self._memory
        if not m.profile.open:
            m.profile = Spell()
        m.layers = {name: spell for name, spell in m.layers.items() if spell.open}

    def state(self) -> dict[str, Any]:
        return to_state(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        self._memory = from_state(state, Memory)

    def _profile(
        self, step: int, names: list[str], gradient: npt.NDArray[np.float64], signals: list[Signal]
    ) -> None:
        # A gradient of exact zeros is that of dead units; one that decays until it underflows shows before.
        positive = np.flatnonzero(np.isfinite(gradient) & (gradient > 0))
        if len(positive) < LEAST_TENSORS:
            return
        known = gradient[positive]
        third = max(len(known) // 3, 1)
        first, last = float(np.median(known[:third])), float(np.median(known[-third:]))
        holds = first < PROFILE * last and first < FLOOR
        if holds:
            cuts = np.unique(np.linspace(0, len(known), min(len(known), BINS) + 1).astype(int))
            bins = [float(np.median(part)) for part in np.split(known, cuts[1:-1])]
            holds = trend(bins) > RISE
        spell = self._memory.profile
        if spell.take(step, holds, SAMPLES, STEPS, clear=first < PROFILE**2 * last):
            worst = names[int(positive[np.argmin(known)])]
            if spell.open:
                text = (
                    f"the gradient decays over depth to {first / last:.1e} of its size, the least in {worst}"
                )
            else:
                text = "the gradient reaches the first layers again"
            signals.append(
                Signal(
                    kind="vanishing_gradient",
                    step=step,
                    onset_step=spell.since,
                    severity="warning",
                    summary=text,
                    over=not spell.open,
                    tensor=worst,
                    evidence={
                        "first_over_last": first / last,
                        "first_third_rms": first,
                        "last_third_rms": last,
                        "layers": len(known),
                    },
                )
            )

    def _layers(
        self,
        step: int,
        names: list[str],
        gradient: npt.NDArray[np.float64],
        ratio: npt.NDArray[np.float64],
        signals: list[Signal],
    ) -> None:
        known = np.isfinite(gradient) & np.isfinite(ratio)
        if known.sum() < LEAST_TENSORS:
            return
        usual_gradient, usual_ratio = np.median(gradient[known]), np.median(ratio[known])
        quiet = known & (gradient > 0) & (gradient < LAYER * usual_gradient) & (ratio < LAYER * usual_ratio)
        spells = self._memory.layers
        for i in np.flatnonzero(quiet | np.isin(names, list(spells))):
            spell = spells.setdefault(names[i], Spell())
            clear = bool(gradient[i] < LAYER**2 * usual_gradient and ratio[i] < LAYER**2 * usual_ratio)
            changed = spell.take(step, bool(quiet[i]), SAMPLES, LAYER_STEPS, clear)
            # A gradient that decays over depth is told once, not for each of the layers.
            if changed and not (spell.open and self._memory.profile.open):
                share = float(ratio[i] / usual_ratio) if usual_ratio > 0 else 0.0
                text = f"{names[i]} moves at {share:.1e} of the median layer's update/param ratio"
                signals.append(
                    Signal(
                        kind="vanishing_gradient",
                        step=step,
                        onset_step=spell.since,
                        severity="warning",
                        key=names[i],
                        summary=text if spell.open else f"{names[i]} learns again",
                        over=not spell.open,
                        tensor=names[i],
                        evidence={
                            "update_over_param": float(ratio[i]),
                            "median_update_over_param": float(usual_ratio),
                            "grad_rms": float(gradient[i]),
                            "median_grad_rms": float(usual_gradient),
                        },
                    )
                )
            if not spell.samples and not spell.open:
                del spells[names[i]]
