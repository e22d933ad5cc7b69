"""Non-finite values: at once, and not where AMP looks for its scale."""

import numpy as np

from optwatch.detect.panel import Panel
from optwatch.series.points import Samples
from tests.unit.detect.series import falling, points


def test_a_nan_loss_is_critical_at_its_step() -> None:
    loss = falling(50)
    loss[30:] = np.nan
    panel = Panel("run")
    panel.update(points(loss=loss))
    finding = next(finding for finding in panel.findings if finding.kind == "non_finite")
    assert (finding.severity, finding.step, finding.onset_step) == ("critical", 31, 31)


def test_a_loss_that_was_never_finite_is_found() -> None:
    panel = Panel("run")
    (finding,) = panel.update(points(loss=np.full(10, np.nan)))
    assert (finding.kind, finding.step) == ("non_finite", 1)


def test_the_tensor_where_it_began_is_named() -> None:
    samples = Samples(
        step=np.array([3]),
        names=("a", "b", "c"),
        numel=np.array([10, 10, 10]),
        stats={},
        counts={"grad_nonfinite": np.array([[0, 2, 5]], np.uint64)},
    )
    panel = Panel("run")
    (finding,) = panel.update(points(loss=[1.0, 1, 1, 1], samples=samples))
    assert finding.tensor == "b"


def test_an_overflow_under_amp_is_normal_unless_it_stays() -> None:
    norm = falling(100)
    norm[[20, 60]] = np.inf
    scale = np.full(100, 1024.0)
    panel = Panel("run")
    assert panel.update(points(loss=falling(100), grad_norm=norm, loss_scale=scale)) == []
    norm[60:65] = np.inf
    panel = Panel("run")
    (finding,) = panel.update(points(loss=falling(100), grad_norm=norm, loss_scale=scale))
    assert (finding.kind, finding.step) == ("non_finite", 65)


def sampled(steps: list[int], moments: list[int]) -> Samples:
    """One tensor, looked at in some steps: how many elements of its moments were not finite."""
    return Samples(
        step=np.array(steps),
        names=("a",),
        numel=np.array([10]),
        stats={},
        counts={
            "grad_nonfinite": np.zeros((len(steps), 1), np.uint64),
            "moments_nonfinite": np.array(moments, np.uint64)[:, None],
        },
    )


def test_moments_that_are_not_finite_are_found_and_stay_open_until_a_sample_sees_them_finite() -> None:
    panel = Panel("run")
    loss = falling(250)
    (finding,) = panel.update(points(loss=loss[:200], samples=sampled([50, 100], [0, 3])))
    assert (finding.kind, finding.step, finding.tensor) == ("non_finite", 100, "a")
    assert finding.resolved_step is None
    assert finding.causes[0].cause == "stale_moments"
    (finding,) = panel.update(points(201, loss=loss[200:], samples=sampled([220], [0])))
    assert finding.resolved_step == 239


def test_moments_that_stay_non_finite_after_a_gradient_are_told_of_as_well() -> None:
    norm = falling(60)
    norm[20] = np.nan
    panel = Panel("run")
    panel.update(points(loss=falling(60), grad_norm=norm, samples=sampled([25], [3])))
    (finding,) = panel.findings
    assert (finding.onset_step, finding.evidence["where"]) == (21, "moments")


def test_after_an_action_moments_are_held_finite_until_a_sample_says_otherwise() -> None:
    loss = falling(200)
    panel = Panel("run")
    panel.update(points(loss=loss[:110], samples=sampled([50, 100], [0, 3])))
    panel.acted(110, "restart")
    panel.update(points(111, loss=loss[110:]))
    (finding,) = panel.findings
    assert finding.resolved_step is not None
