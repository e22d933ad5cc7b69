"""What a change of units or of counting does to the findings: nothing, but for what is said here."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.detect.panel import Panel
from optwatch.series.points import Points
from tests.unit.detect.series import F8, falling, points


def wrong_run(seed: int, fault: int) -> tuple[F8, F8]:
    """A loss and a gradient norm of 900 points, with one of several faults at 500."""
    loss, norm = falling(900, seed), falling(900, seed + 1)
    if fault == 1:
        loss[500:] = 2.3 * 1.1 ** np.arange(400)
    elif fault == 2:
        loss[500], norm[499] = 30.0, 100.0
    elif fault == 3:
        loss[500:] += np.linspace(0, 1.0, 400)
    elif fault == 4:
        loss[:] = 2.3 * np.exp(np.random.default_rng(seed).normal(0, 0.01, 900))
    elif fault == 5:
        loss[500:] = np.nan
    return loss, norm


def seen(run: Points, origin: int = 0) -> list[tuple[Any, ...]]:
    panel = Panel("run")
    panel.update(run)
    return [(f.kind, f.severity, f.step - origin, f.onset_step - origin) for f in panel.findings]


@settings(max_examples=12)
@given(seed=st.integers(0, 1_000), fault=st.integers(0, 5), power=st.integers(-30, 60))
def test_the_unit_of_the_loss_makes_no_difference(seed: int, fault: int, power: int) -> None:
    loss, norm = wrong_run(seed, fault)
    assert seen(points(loss=loss, grad_norm=norm)) == seen(points(loss=loss * 2.0**power, grad_norm=norm))


@settings(max_examples=12)
@given(seed=st.integers(0, 1_000), fault=st.integers(0, 5), power=st.integers(-12, 60))
def test_nor_does_that_of_the_gradient_above_1e_6(seed: int, fault: int, power: int) -> None:
    loss, norm = wrong_run(seed, fault)
    assert seen(points(loss=loss, grad_norm=norm)) == seen(points(loss=loss, grad_norm=norm * 2.0**power))


@settings(max_examples=12)
@given(seed=st.integers(0, 1_000), fault=st.integers(0, 5), origin=st.integers(0, 10**9))
def test_nor_where_the_steps_are_counted_from(seed: int, fault: int, origin: int) -> None:
    loss, norm = wrong_run(seed, fault)
    assert seen(points(1, loss=loss, grad_norm=norm)) == seen(
        points(1 + origin, loss=loss, grad_norm=norm), origin
    )


@pytest.mark.parametrize("every", [1, 2, 5, 10])
def test_a_divergence_is_found_at_any_logging_interval(every: int) -> None:
    loss, norm = wrong_run(3, 1)
    kinds = [kind for kind, *_ in seen(points(loss=loss[::every], grad_norm=norm[::every]))]
    assert "divergence" in kinds


def averaged(values: F8, k: int) -> F8:
    """Means of `k` points each, as of a log that is written every `k` steps."""
    return values[: len(values) // k * k].reshape(-1, k).mean(axis=1)


@settings(max_examples=12)
@given(seed=st.integers(0, 1_000), k=st.sampled_from([1, 2, 5, 10]))
def test_means_of_a_healthy_loss_raise_no_alarm_and_those_of_a_divergence_show_it(seed: int, k: int) -> None:
    loss = falling(4_000, seed)
    assert not [f for f in seen(points(loss=averaged(loss, k))) if f[1] in ("warning", "critical")]
    loss[2_600:] *= np.minimum(np.exp(0.02 * np.arange(1_400)), 50.0)
    found = [f for f in seen(points(loss=averaged(loss, k))) if f[1] in ("warning", "critical")]
    assert {kind for kind, *_ in found} & {"divergence", "slow_divergence"}
    assert all(onset * k > 2_400 for kind, _, _, onset in found if kind == "divergence")


@settings(max_examples=12)
@given(seed=st.integers(0, 1_000), constant=st.floats(0, 1e6))
def test_a_constant_never_makes_an_excursion_out_of_what_is_none(seed: int, constant: float) -> None:
    excursions = {"divergence", "loss_spike", "slow_divergence"}
    loss = falling(900, seed)  # in one of hundreds noise alone makes a spike, which is information
    without, found = ({kind for kind, *_ in seen(points(loss=each))} for each in (loss, loss + constant))
    assert excursions & found <= excursions & without


def test_a_constant_that_is_added_to_the_loss_makes_its_changes_less() -> None:
    """As documented: excursions are measured against the level, too (10 % of it)."""
    loss = falling(900, noise=0.01)
    loss[500:503] += 1.0
    assert [kind for kind, *_ in seen(points(loss=loss))] == ["divergence"]
    assert "divergence" not in [kind for kind, *_ in seen(points(loss=loss + 100))]
