"""What the model's input and its activations say of a cause, where the agent has seen them."""

import math

from optwatch.detect.base import Signal
from optwatch.detect.evidence import Evidence
from optwatch.wire.findings import CauseName, Kind

UNSCALED = 10.0
"""|mean|, std, or rms of a feature from which an input is not of order one. Initialisations take inputs of
zero mean and unit variance (LeCun et al., Efficient BackProp, 1998); the first layer's gradient energy grows
with their square. An order of magnitude was chosen beforehand, not fitted to runs."""
MOST = 0.5
"""Share of a layer's units that are dead or saturated from which it is the greater part."""
EARLY = 50
"""Steps from the start in which an excursion may be owed to the input's scale."""

_AT_START: tuple[Kind, ...] = ("divergence", "loss_spike", "exploding_gradient", "non_finite")
_UNSCALED: tuple[Kind, ...] = (*_AT_START, "slow_divergence", "oscillation", "plateau", "clip_saturated")
_DEAD: tuple[Kind, ...] = ("plateau", "dead_parameters", "vanishing_gradient")
_SATURATED: tuple[Kind, ...] = ("plateau", "vanishing_gradient")


def inside(signal: Signal, evidence: Evidence) -> dict[CauseName, tuple[float, str]]:
    """Causes with their odds and why, as `causes` takes them."""
    found: dict[CauseName, tuple[float, str]] = {}
    kind, step = signal.kind, signal.step
    late = evidence.steps_from_start(signal.onset_step) >= EARLY
    if kind in _UNSCALED and not (late and kind in _AT_START):
        mean, std, high = (evidence.seen(f"input_{what}", step) for what in ("mean", "std", "high"))
        if any(math.isfinite(x) and abs(x) > UNSCALED for x in (mean, std, high)):
            found["unscaled_inputs"] = (
                6.0,
                f"the input has mean {mean:.3g}, std {std:.3g} and features up to an rms of {high:.3g}",
            )
    for cause, kinds, prefix, what in (
        ("dead_units", _DEAD, "dead/", "units are zero for the whole batch"),
        ("saturated_activations", _SATURATED, "saturated/", "outputs are saturated"),
    ):
        name, share = evidence.worst(prefix, step)
        if kind in kinds and share > MOST:
            found[cause] = 5.0, f"{share:.0%} of {name}'s {what}"  # type: ignore[index]
    return found
