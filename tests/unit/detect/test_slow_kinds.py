"""Slow divergence, oscillation and plateaus."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.wire.findings import Finding
from tests.unit.detect.series import F8, falling, points


def found(kind: str, **columns: object) -> tuple[Finding, ...]:
    panel = Panel("run")
    panel.update(points(**columns))
    return tuple(finding for finding in panel.findings if finding.kind == kind)


def noise(n: int, size: float, seed: int = 0) -> F8:
    drawn: F8 = np.random.default_rng(seed).normal(0, size, n)
    return drawn


def test_a_loss_that_creeps_up_is_a_slow_divergence() -> None:
    loss = falling(1_000, noise=0.02)
    loss[500:] += np.linspace(0, 1.0, 500)
    (finding,) = found("slow_divergence", loss=loss)
    assert finding.severity == "warning"
    assert 500 < finding.onset_step < 750
    assert finding.resolved_step is None


def shifted() -> tuple[F8, F8]:
    """Loss and gradient norm of a run whose data change at step 500: both change their level at once."""
    loss, norm = falling(1_000, noise=0.1), np.exp(noise(1_000, 0.2))
    loss[500:] += 0.3 * np.exp(-np.arange(500) / 300)
    norm[500:] *= 2
    return loss, norm


def test_a_loss_that_changes_its_level_at_once_is_shown_quietly_as_a_shift_of_the_data() -> None:
    loss, norm = shifted()
    (finding,) = found("slow_divergence", loss=loss, grad_norm=norm)
    assert finding.severity == "watch"
    assert finding.causes[0].cause == "data_shift"


def test_a_change_of_level_is_an_alarm_where_the_loss_rises_further() -> None:
    loss, norm = shifted()
    loss[560:] += np.minimum(np.arange(440) / 400, 0.8)
    (finding,) = found("slow_divergence", loss=loss, grad_norm=norm)
    assert finding.severity == "warning"


@pytest.mark.parametrize("event", ["gradient", "rate", "unknown"])
def test_a_change_of_level_that_the_run_itself_may_have_made_is_an_alarm(event: str) -> None:
    loss, norm = shifted()
    columns = {"lr": np.full(1_000, 0.01), "grad_norm": norm}
    if event == "gradient":
        norm[499] *= 50
    elif event == "rate":
        columns["lr"][499:] = 0.1
    else:
        del columns["grad_norm"]
    (finding,) = found("slow_divergence", loss=loss, **columns)
    assert finding.severity == "warning"


def test_a_smooth_swing_is_an_oscillation_and_noise_of_that_size_is_not() -> None:
    steps = np.arange(300)
    swinging = np.where(steps < 30, 2.3 - steps * 0.06, 1.3 + 0.8 * np.sin(steps / 2.5))
    (finding,) = found("oscillation", loss=swinging)
    assert (finding.severity, finding.resolved_step) == ("warning", None)
    noisy = np.where(steps < 30, 2.3 - steps * 0.06, 1.3 + noise(300, 0.6))
    assert not found("oscillation", loss=noisy)


def test_no_progress_is_stuck() -> None:
    (finding,) = found("plateau", loss=2.3 + noise(600, 0.05))
    assert (finding.severity, finding.step) == ("warning", 400)


@pytest.mark.parametrize("seed", range(5))
def test_a_late_starter_whose_gradient_grows_is_left_in_peace(seed: int) -> None:
    steps = np.arange(1_500)
    escape = 1 / (1 + np.exp(-(steps - 900) / 40))
    loss = 2.3 - 2 * escape + noise(1_500, 0.01, seed)
    norm = 0.01 * np.exp(steps / 500) * np.exp(noise(1_500, 0.1, seed + 9)) * (1 + 100 * escape)
    assert not [f for f in found("plateau", loss=loss, grad_norm=norm) if f.severity == "warning"]


def test_flat_after_progress_at_a_high_lr_is_information() -> None:
    loss = np.concatenate([falling(300, noise=0.02), 0.31 * np.exp(noise(900, 0.02))])
    (finding,) = found("plateau", loss=loss, lr=np.full(1_200, 0.1))
    assert finding.severity == "info"


def test_flat_where_the_schedule_ended_is_converged() -> None:
    loss = np.concatenate([falling(300, noise=0.02), 0.31 * np.exp(noise(900, 0.02))])
    lr = np.concatenate([np.linspace(0.1, 0, 400), np.zeros(800)])
    (finding,) = found("converged", loss=loss, lr=lr)
    assert finding.severity == "info"


def test_flat_since_the_lr_was_cut_is_a_plateau() -> None:
    loss = np.concatenate([falling(600, noise=0.02)[:200], 0.6 * np.exp(noise(400, 0.02))])
    lr = np.concatenate([np.full(200, 0.1), np.full(400, 1e-5)])
    (finding,) = found("plateau", loss=loss, lr=lr)
    assert finding.evidence["lr_cut"] == pytest.approx(1e4)
    assert finding.evidence["lr_cut_step"] == 201


def test_a_mark_waits_for_its_step_and_makes_a_jump_a_planned_change() -> None:
    loss = falling(600, noise=0.05)
    loss[300:] += 1.5
    whole = points(loss=loss)
    unmarked, marked = Panel("run"), Panel("run")
    unmarked.update(whole)
    assert "divergence" in [finding.kind for finding in unmarked.findings]
    marked.mark(301)  # before any point has come
    marked.update(whole)
    assert not [finding for finding in marked.findings if finding.severity in ("warning", "critical")]
