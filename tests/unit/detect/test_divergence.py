"""Excursions: found early, graded, and over when they are over."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding
from tests.unit.detect.series import F8, falling, points


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
    norm[300] = 30.0
    (watched,) = found(loss=loss, grad_norm=norm)
    assert (watched.kind, watched.severity) == ("exploding_gradient", "watch")
    norm[300] = 1e4  # the moments hold this for long
    (told,) = found(loss=loss, grad_norm=norm)
    assert (told.kind, told.severity) == ("exploding_gradient", "info")
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


def wounded(left: float) -> F8:
    """A run that won 2 of 2.3, lost nearly all of it at 1,000, and has `left` of the loss 1,500 points on."""
    won = 0.3 + 2 * np.exp(-np.arange(1_000) / 150)
    back = 0.3 + 1.8 * np.exp(np.log(left / 1.8) * np.arange(1_500) / 1_500)
    noisy: F8 = np.concatenate([won, back]) * np.exp(np.random.default_rng(0).normal(0, 0.03, 2_500))
    return noisy


def test_a_divergence_is_over_once_nearly_all_is_won_back() -> None:
    (finding,) = found(loss=wounded(left=0.05))
    assert (finding.kind, finding.onset_step) == ("divergence", 1_001)
    assert finding.resolved_step is not None
    assert 2_100 < finding.resolved_step < 2_500


def test_and_open_while_a_good_part_is_lost() -> None:
    (finding,) = found(loss=wounded(left=0.5))
    assert (finding.kind, finding.resolved_step) == ("divergence", None)


def after_an_action(loss: F8) -> Finding:
    """The divergence of a run in which an action was applied at 1,101."""
    panel = Panel("run")
    panel.update(points(loss=loss[:1_100]))
    assert panel.findings[0].resolved_step is None
    panel.acted(1_101, "restart")
    panel.update(points(1_101, loss=loss[1_100:]))
    return panel.findings[0]


def test_after_an_action_it_is_over_once_the_loss_falls_steadily() -> None:
    finding = after_an_action(wounded(left=0.5))
    assert (finding.kind, finding.resolved_step) == ("divergence", 1_300)
    assert "recovers" in finding.summary


def test_but_not_where_the_loss_stays_where_it_is_or_above_its_start() -> None:
    assert after_an_action(wounded(left=1.8)).resolved_step is None
    assert after_an_action(wounded(left=0.5) + 5 * (np.arange(2_500) >= 1_000)).resolved_step is None


def test_an_action_hides_no_new_divergence() -> None:
    loss = falling(600)
    loss[300:] = 2.3 * 1.5 ** np.arange(300)
    panel = Panel("run")
    panel.acted(301, "scale_lr")
    panel.update(points(loss=loss))
    assert "divergence" in [finding.kind for finding in panel.findings]


def test_a_warm_restart_of_the_lr_is_a_planned_change() -> None:
    steps = np.arange(1_000)
    lr = 0.1 * (0.5 + 0.5 * np.cos(np.pi * (steps % 500) / 500))
    loss = 0.2 + 2 * np.exp(-(steps % 500) / 80) * np.where(steps < 500, 1, 0.5)
    assert not [finding for finding in found(loss=loss, lr=lr) if finding.severity in ALARMS]
    assert [finding for finding in found(loss=loss) if finding.severity in ALARMS]


def test_a_loss_thrown_out_of_its_range_at_once_is_a_bad_batch_even_where_no_norm_was_measured() -> None:
    loss, lr = falling(600), np.full(600, 1e-3)
    thrown, drifting = loss.copy(), loss.copy()
    thrown[400:430] = 300.0
    drifting[400:] *= 1.2 ** np.arange(200)
    assert found(loss=thrown, lr=lr)[0].causes[0].cause == "bad_batch"
    assert found(loss=drifting, lr=lr)[0].causes[0].cause == "lr_too_high"


def jumped(after: F8) -> dict[str, F8]:
    """A run whose loss jumps by 1.5 at step 301 and goes on as `after`, gradient and LR being as usual."""
    loss = falling(600, noise=0.02)
    loss[300:] += 1.5 * after
    norm = np.exp(np.random.default_rng(1).normal(0, 0.2, 600))
    norm[300:] *= 2
    return {"loss": loss, "grad_norm": norm, "lr": np.full(600, 0.01)}


def alarms(**columns: object) -> list[Finding]:
    return [finding for finding in found(**columns) if finding.severity in ALARMS]


def test_a_loss_that_jumps_without_a_gradient_of_its_own_and_falls_is_no_alarm() -> None:
    assert not alarms(**jumped(np.exp(-np.arange(300) / 150)))


@pytest.mark.parametrize(
    ("after", "latest"), [(np.ones(300), 405), (1 + np.arange(300) / 100, 370)], ids=["flat", "rising"]
)
def test_a_loss_that_jumps_and_does_not_fall_is_an_alarm(after: F8, latest: int) -> None:
    assert min(finding.step for finding in alarms(**jumped(after))) <= latest


@pytest.mark.parametrize("event", ["gradient", "rate"])
def test_a_loss_that_the_weights_threw_is_an_alarm_at_once(event: str) -> None:
    columns = jumped(np.exp(-np.arange(300) / 150))
    if event == "gradient":
        columns["grad_norm"][300] *= 10
    else:
        columns["lr"][290:] *= 3
    assert min(finding.step for finding in alarms(**columns)) <= 310
