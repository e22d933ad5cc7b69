"""An LR that collapses: an alarm where it stops a loss that fell, and nothing where a schedule ends."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding
from tests.unit.detect.series import F8, falling, points

RUN, CUT = 2_000, 800


def power_law(n: int, seed: int = 0, noise: float = 0.03) -> F8:
    """A loss that keeps falling, ever more slowly, under log-normal noise."""
    noisy = np.random.default_rng(seed).normal(0, noise, n)
    fallen: F8 = (0.06 + 0.5 * (1 + np.arange(n) / 30) ** -0.9) * np.exp(noisy)
    return fallen


def halted(seed: int = 0) -> F8:
    """The same, but it creeps on at 1/20 of its pace from the cut on."""
    still = power_law(RUN, noise=0)
    still[CUT:] = still[CUT] - 0.05 * (still[CUT] - still[CUT:])
    noisy: F8 = still * np.exp(np.random.default_rng(seed).normal(0, 0.03, RUN))
    return noisy


def collapsed(factor: float = 1e-4) -> F8:
    return np.where(np.arange(RUN) < CUT, 1e-3, 1e-3 * factor)


def plateaus(loss: F8, lr: F8) -> list[Finding]:
    panel = Panel("run")
    panel.update(points(loss=loss, lr=lr))
    return [finding for finding in panel.findings if finding.kind == "plateau"]


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_stops_where_the_lr_collapses_is_an_alarm_long_before_the_end(seed: int) -> None:
    (finding,) = plateaus(halted(seed), collapsed())
    assert (finding.severity, finding.onset_step, finding.resolved_step) == ("warning", CUT + 1, None)
    assert CUT + 200 <= finding.step <= CUT + 500
    assert [cause.cause for cause in finding.causes] == ["lr_too_low", "lr_schedule"]
    assert finding.evidence["lr_cut"] == pytest.approx(1e4)


@pytest.mark.parametrize("factor", [0.1, 0.02])
def test_a_step_decay_is_no_collapse(factor: float) -> None:
    assert not [f for f in plateaus(halted(), collapsed(factor)) if f.severity in ALARMS]


def test_nor_is_a_collapse_an_alarm_while_the_loss_falls_on() -> None:
    assert not [f for f in plateaus(power_law(RUN), collapsed()) if f.severity in ALARMS]


def test_nor_where_the_loss_was_flat_before() -> None:
    loss = np.concatenate([falling(400, noise=0), np.full(RUN - 400, 0.31)])
    loss *= np.exp(np.random.default_rng(1).normal(0, 0.03, RUN))
    assert not [f for f in plateaus(loss, collapsed()) if f.severity in ALARMS]


@pytest.mark.parametrize("shape", ["cosine", "linear", "cosine to a floor"])
@pytest.mark.parametrize("length", [60, CUT])
def test_the_end_of_a_decay_is_no_collapse(shape: str, length: int) -> None:
    done = np.minimum(np.arange(RUN) / length, 1.0)
    lr = 1e-3 * (1 - done if shape == "linear" else 0.5 + 0.5 * np.cos(np.pi * done))
    lr = np.maximum(lr, 1e-9 if shape == "cosine to a floor" else 0)
    assert not [f for f in plateaus(halted(), lr) if f.severity in ALARMS]


def test_a_scheduler_stepped_too_often_is_a_collapse() -> None:
    lr = np.maximum(1e-3 * 0.1 ** np.maximum(np.arange(RUN) - CUT, 0), 1e-12)
    (finding,) = plateaus(halted(), lr)
    assert (finding.severity, finding.onset_step) == ("warning", CUT + 3)


def test_an_lr_of_zero_is_a_collapse_too() -> None:
    (finding,) = plateaus(halted(), collapsed(0))
    assert finding.severity == "warning"


def test_the_end_of_an_lr_spike_is_no_collapse() -> None:
    lr = np.full(RUN, 1e-3)
    lr[CUT - 20 : CUT] = 1.0
    assert not [f for f in plateaus(halted(), lr) if f.severity in ALARMS]


def test_it_is_over_once_the_lr_is_back() -> None:
    lr = collapsed()
    lr[1_500:] = 1e-3
    finding, *_ = plateaus(halted(), lr)
    assert (finding.severity, finding.resolved_step) == ("warning", 1_501)


@pytest.mark.parametrize("seen", [CUT - 5, CUT, CUT + 50])
def test_a_cut_by_an_action_is_no_collapse_however_late_or_early_it_is_told(seen: int) -> None:
    loss, lr = halted(), collapsed()
    panel = Panel("run")
    panel.update(points(loss=loss[:seen], lr=lr[:seen]))
    panel.acted(CUT + 1, "scale_lr")
    panel.update(points(1 + seen, loss=loss[seen:], lr=lr[seen:]))
    assert not [f for f in panel.findings if f.severity in ALARMS]
