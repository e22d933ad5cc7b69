"""Vanishing gradients, at any density of the samples."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.series.points import Points, Samples
from optwatch.wire.findings import Finding
from tests.unit.detect.series import falling, points

LAYERS = 12


def run(every: int, decay: float, steps: int = 3_000) -> Points:
    """A run whose gradient shrinks by `decay` from the last layer to the first, sampled now and then."""
    step = np.arange(every, steps + 1, every, dtype=np.int64)
    rng = np.random.default_rng(0)
    gradient = decay ** np.linspace(1, 0, LAYERS) * 1e-4 * np.exp(rng.normal(0, 0.2, (len(step), LAYERS)))
    same = np.full((len(step), LAYERS), 0.1)
    samples = Samples(
        step=step,
        names=tuple(f"{i}.weight" for i in range(LAYERS)),
        numel=np.full(LAYERS, 10_000),
        stats={
            "grad_rms": gradient.astype(np.float32),
            "param_rms": same.astype(np.float32),
            "update_rms": (same * 1e-3).astype(np.float32),
        },
        counts={},
    )
    return points(loss=falling(steps), samples=samples)


def found(points: Points) -> list[Finding]:
    panel = Panel("run")
    panel.update(points)
    return [finding for finding in panel.findings if finding.kind == "vanishing_gradient"]


@pytest.mark.parametrize(
    ("every", "decay", "step"),
    [
        (10, 1e-5, 60),  # five samples over fifty steps
        (100, 1e-5, 500),
        (1_000, 1e-5, None),  # three samples of a decay that is not clear
        (1_000, 1e-9, 2_000),  # two are enough where it is
        (150, 1e-9, 450),  # over at least 200 steps
    ],
)
def test_it_is_found_from_few_samples_if_they_are_clear(every: int, decay: float, step: int | None) -> None:
    assert [finding.step for finding in found(run(every, decay))] == ([step] if step else [])


@pytest.mark.parametrize("every", [10, 1_000])
def test_a_decay_over_depth_that_lets_the_first_layers_learn_is_none(every: int) -> None:
    assert not found(run(every, 1e-2))


def test_it_is_over_after_two_samples_that_are_far_apart() -> None:
    bad, good = run(300, 1e-9), run(300, 1e-1)
    assert bad.samples is not None
    assert good.samples is not None
    bad.samples.stats["grad_rms"][5:] = good.samples.stats["grad_rms"][5:]
    (finding,) = found(bad)
    assert (finding.step, finding.resolved_step) == (600, 2_100)


def test_one_quiet_layer_is_named() -> None:
    quiet = run(300, 1.0)
    assert quiet.samples is not None
    for name in ("grad_rms", "update_rms"):
        quiet.samples.stats[name][:, 4] *= 1e-5
    (finding,) = found(quiet)
    assert (finding.tensor, finding.step) == ("4.weight", 600)


def test_a_gradient_cut_off_by_dead_units_does_not_vanish_but_one_that_underflows_does() -> None:
    dead, underflow = run(10, 1.0), run(10, 1e-60)
    assert dead.samples is not None
    assert underflow.samples is not None
    dead.samples.stats["grad_rms"][:, :5] = 0
    assert not found(dead)
    assert not underflow.samples.stats["grad_rms"][:, 0].any()
    assert len(found(underflow)) == 1
