"""Overfitting, by the validation loss that a script logs."""

import numpy as np

from optwatch.detect.panel import Panel
from optwatch.series.points import Column, Points
from optwatch.wire.findings import Finding
from tests.unit.detect.series import F8, falling

EVERY = 50


def found(validation: F8) -> list[Finding]:
    """Over a training loss that falls, with an evaluation every 50 steps."""
    n = EVERY * len(validation)
    logged = np.arange(n) % EVERY == EVERY - 1
    held = np.full(n, np.nan)
    held[logged] = validation
    panel = Panel("run")
    columns = {"loss": Column(falling(n), np.ones(n, bool)), "val_loss": Column(held, logged)}
    panel.update(Points(np.arange(1, n + 1, dtype=np.int64), columns))
    return [finding for finding in panel.findings if finding.kind == "overfitting"]


def fallen(n: int = 40) -> F8:
    return falling(n, noise=0.01)


def test_a_validation_loss_that_rises_from_its_best_is_overfitting() -> None:
    validation = fallen()
    validation[20:] += np.linspace(0, 0.6, 20)
    (finding,) = found(validation)
    assert finding.severity == "warning"
    assert 18 * EVERY <= finding.onset_step <= 24 * EVERY
    assert finding.step < 36 * EVERY
    assert finding.causes[0].cause == "finished"


def test_one_that_stays_near_its_best_is_none() -> None:
    assert not found(fallen() + np.linspace(0, 0.05, 40))


def test_a_net_whose_evaluations_go_to_and_fro_is_none() -> None:
    rng = np.random.default_rng(0)
    runs = [(1.5 + fallen(80)) * np.exp(np.abs(rng.normal(0, 0.4, 80))) for _ in range(40)]
    assert sum(bool(found(validation)) for validation in runs) <= 4


def test_a_falling_validation_loss_after_it_is_the_end_of_it() -> None:
    validation = fallen(80)
    validation[20:40] += np.linspace(0, 0.8, 20)
    validation[40:] = 0.3
    (finding,) = found(validation)
    assert finding.resolved_step is not None
