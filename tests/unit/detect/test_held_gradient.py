"""A gradient that the moments hold: found from two samples, whatever came between them."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.series.points import Samples
from tests.unit.detect.series import falling, points


def adam(gradients: np.ndarray, at: list[int], beta2: float = 0.999, lion: bool = False) -> Samples:
    """Samples of a layer whose gradient has these sizes, its direction drawn anew at each step."""
    draw = np.random.default_rng(0)
    first, second = np.zeros(256), np.zeros(256)
    rows: dict[str, list[float]] = {name: [] for name in ("g", "m", "v", "rms_t", "cos")}
    for step, size in enumerate(gradients, start=1):
        gradient = size * draw.normal(size=256)
        first = (0.99 if lion else 0.9) * first + (0.01 if lion else 0.1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        if step in at:
            unbiased = second / (1 - beta2**step)
            rows["g"].append(float(np.sqrt(np.mean(gradient**2))))
            rows["m"].append(float(np.sqrt(np.mean(first**2))))
            rows["v"].append(np.nan if lion else float(second.mean()))
            rows["rms_t"].append(np.nan if lion else float(np.sqrt(np.mean(gradient**2 / unbiased))))
            rows["cos"].append(float(gradient @ first / np.linalg.norm(gradient) / np.linalg.norm(first)))
    stats = dict(
        zip(
            ("grad_rms", "exp_avg_rms", "exp_avg_sq_mean", "rms_t", "cos_grad_exp_avg"),
            rows.values(),
            strict=True,
        )
    )
    return Samples(
        step=np.array(at),
        names=("weight",),
        numel=np.array([256]),
        stats={name: np.array(values, np.float32)[:, None] for name, values in stats.items()},
        counts={},
    )


@pytest.mark.parametrize("lion", [False, True])
def test_one_huge_gradient_between_two_samples_is_found_by_what_it_left(lion: bool) -> None:
    gradients = np.ones(400)
    gradients[199] = 1e3
    panel = Panel("run")
    loss = falling(400)
    samples = adam(gradients, [50, 150, 250, 350], lion=lion)
    (found,) = [f for f in panel.update(points(loss=loss, samples=samples)) if f.kind == "exploding_gradient"]
    assert (found.severity, found.step, found.onset_step, found.tensor) == ("info", 250, 151, "weight")
    assert found.causes[0].cause == "stale_moments"


@pytest.mark.parametrize(
    "gradients",
    [
        np.ones(1000),
        np.geomspace(1, 100, 1000),
        np.geomspace(1, 1e-3, 1000),
        np.r_[np.ones(500), np.full(500, 10.0)],
    ],
    ids=["steady", "growing", "fading", "a step up"],
)
def test_gradients_that_change_without_such_an_event_are_not(gradients: np.ndarray) -> None:
    panel = Panel("run")
    found = panel.update(points(loss=falling(1000), samples=adam(gradients, list(range(5, 1000, 45)))))
    assert [f for f in found if f.kind == "exploding_gradient"] == []


def test_it_is_over_when_the_moments_have_forgotten_it() -> None:
    gradients = np.ones(600)
    gradients[199] = 1e3
    panel = Panel("run")
    panel.update(points(loss=falling(600), samples=adam(gradients, list(range(5, 600, 10)), beta2=0.95)))
    (found,) = [f for f in panel.findings if f.kind == "exploding_gradient"]
    assert found.step == 205
    assert found.resolved_step is not None
