"""The noise of gradients as evidence for a batch that is too small."""

import math

import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.causes import causes_of
from optwatch.detect.evidence import Evidence
from optwatch.series.points import Column, Points

SWINGS = Signal(
    kind="oscillation", step=100, summary="", severity="warning", onset_step=50, evidence={"swings": 9}
)


def evidence(trace: float) -> Evidence:
    there = np.ones(100, dtype=bool)
    columns = {
        "noise_trace": Column(np.full(100, trace), there),
        "noise_signal": Column(np.full(100, 0.5), there),
    }
    made = Evidence()
    made.update(Points(np.arange(1, 101), columns))
    return made


def test_gradients_that_are_mostly_noise_speak_for_a_larger_batch() -> None:
    noisy, calm = evidence(10.0), evidence(0.1)
    assert noisy.noise_scale(100) == 20.0
    assert math.isnan(noisy.noise_scale(5))
    weights = [
        {c.cause: c.weight for c in causes_of(SWINGS, of, ())}["batch_too_small"] for of in (noisy, calm)
    ]
    assert weights[0] > 3 * weights[1]
    restored = Evidence()
    restored.restore(noisy.state())
    assert restored.noise_scale(100) == 20.0
