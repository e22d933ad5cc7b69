"""Excursions: found early, graded, and over when they are over."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding
from tests.unit.detect.series import falling, points


def found(**columns: object) -> tuple[Finding, ...]:
    panel = Panel("run")
    panel.update(points(**columns))
    return panel.findings


def test_a_loss_that_leaves_its_range_for_good_is_a_divergence() -> None:
    loss = falling(300)
    loss[200:] = 2.3 * 1.5 ** np.arange(100)
    (finding,) = found(loss=loss)
    assert (finding.kind, finding.severity) == ("divergence", "critical")
    assert finding.onset_step in (201, 202)
    assert finding.step <= 204
    assert finding.resolved_step is None


def test_a_divergence_that_comes_back_is_resolved() -> None:
    loss = falling(400)
    loss[200:220] = 30.0
    (finding,) = found(loss=loss)
    assert finding.kind == "divergence"
    assert finding.resolved_step is not None
    assert 220 < finding.resolved_step < 240


def test_one_bad_point_is_information_not_an_alarm() -> None:
    loss = falling(400)
    loss[300] = 10.0
    (finding,) = found(loss=loss)
    assert (finding.kind, finding.severity) == ("loss_spike", "info")


def test_a_spike_that_does_not_come_back_becomes_an_alarm() -> None:
    loss = falling(400, noise=0.01)
    loss[300] = 10.0
    loss[301:] += 0.085
    (finding,) = found(loss=loss)
    assert (finding.kind, finding.severity) == ("loss_spike", "warning")
    assert finding.onset_step == 301


def test_a_gradient_out_of_its_range_is_only_watched_until_the_loss_confirms_it() -> None:
    loss, norm = falling(400), falling(400, seed=1)
    norm[300] = 100.0
    (watched,) = found(loss=loss, grad_norm=norm)
    assert (watched.kind, watched.severity) == ("exploding_gradient", "watch")
    loss[301:303] = 10.0
    (confirmed,) = found(loss=loss, grad_norm=norm)
    assert (confirmed.kind, confirmed.severity) == ("divergence", "critical")
    assert confirmed.evidence["norm_over_median"] > 100


def test_it_works_from_the_fifth_point_on() -> None:
    (finding,) = found(loss=[2.3, 2.31, 2.29, 2.3, 2.31, 9.0, 40.0, 300.0])
    assert (finding.kind, finding.onset_step, finding.step) == ("divergence", 6, 7)


@pytest.mark.parametrize("noise", [0.05, 0.3, 0.5])
def test_minibatch_noise_is_no_alarm(noise: float) -> None:
    for seed in range(5):
        findings = found(loss=falling(5_000, seed, noise=noise))
        assert not [finding for finding in findings if finding.severity in ALARMS]


def test_a_warm_restart_of_the_lr_is_a_planned_change() -> None:
    steps = np.arange(1_000)
    lr = 0.1 * (0.5 + 0.5 * np.cos(np.pi * (steps % 500) / 500))
    loss = 0.2 + 2 * np.exp(-(steps % 500) / 80) * np.where(steps < 500, 1, 0.5)
    assert not [finding for finding in found(loss=loss, lr=lr) if finding.severity in ALARMS]
    assert [finding for finding in found(loss=loss) if finding.severity in ALARMS]
