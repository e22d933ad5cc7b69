"""The plan of measurements, from costs and step times that are made up."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch_agent.governor import Costs, Governor


@dataclass
class Told:
    """What became of the steps: whether each had a norm and a sample, and the seconds of both together."""

    norms: list[bool]
    samples: list[bool]
    histograms: list[int]
    cost: float
    time: float


def drive(
    governor: Governor,
    steps: int,
    *,
    step_time: Callable[[int], float] = lambda i: 10e-3,
    fixed: Callable[[int], float] = lambda i: 20e-6,
    norm: Callable[[int], float] = lambda i: 50e-6,
    sample: Callable[[int], float] = lambda i: 2e-3,
    histogram: Callable[[int], float] = lambda i: 1e-6,
) -> Told:
    """Do as the governor says, as a track does: with a sample there is always a norm."""
    told = Told([], [], [], 0.0, 0.0)
    for i in range(steps):
        samples = governor.wants_sample
        norms = samples or governor.wants_norm
        spread = histogram(i) if samples and governor.wants_histogram() else None
        costs = Costs(norm(i) if norms else None, sample(i) if samples else None, spread)
        governor.spent(step_time(i), fixed(i), costs)
        if spread is not None:
            told.histograms.append(i)
            told.cost += spread
        told.norms.append(norms)
        told.samples.append(samples)
        told.cost += sum(cost for cost in (costs.norm, costs.sample) if cost is not None)
        told.time += step_time(i)
    return told


def governor(budget: float = 0.01) -> Governor:
    return Governor(budget, 1_000_000, 14)


def test_a_norm_that_can_be_paid_is_there_on_every_step() -> None:
    told = drive(governor(), 1_000)
    assert told.norms.count(False) < 20  # those of the start
    assert all(told.norms[100:])


def test_histograms_come_with_samples_seldom_and_ever_further_apart() -> None:
    made = governor(budget=0.1)
    told = drive(made, 10_000, step_time=lambda i: 0.1, histogram=lambda i: 1e-3)
    assert all(told.samples[i] for i in told.histograms)
    apart = np.diff(told.histograms)
    assert apart.min() >= 20  # two seconds
    assert apart[:10].max() <= 25
    assert 35 <= apart[-1] <= 45  # a 256th of the run
    assert told.cost <= 0.1 * told.time


def test_expensive_histograms_take_a_fifth_of_what_samples_have_and_keep_to_the_budget() -> None:
    told = drive(governor(), 20_000, histogram=lambda i: 6e-3)
    assert len(told.histograms) > 10
    assert 6e-3 * len(told.histograms) < 0.25 * 30e-6 * 20_000
    assert told.cost <= 0.01 * told.time


def test_samples_take_what_norms_leave() -> None:
    """Of 100 µs a step 10 are kept for what cannot be seen, 20 go to every step and 50 to the norm."""
    made = governor()
    told = drive(made, 10_000)
    assert told.samples.count(True) == pytest.approx(10_000 * 20e-6 / 2e-3, rel=0.15)
    assert made.sample_every == pytest.approx(2e-3 / 20e-6, rel=0.1)
    assert made.norm_every == 1


@pytest.mark.parametrize(("step_time", "every"), [(100e-3, 1), (20e-3, 1), (6e-3, 4), (4e-3, 5), (1e-4, 16)])
def test_looks_at_the_sentinel_take_a_quarter_of_the_budget_and_are_never_far_apart(
    step_time: float, every: int
) -> None:
    made = governor()
    made.look.value = 48e-6
    drive(made, 100, step_time=lambda i: step_time)
    assert made.look_every == every


def test_an_interrupted_measurement_silences_nothing() -> None:
    told = drive(governor(), 1_000, norm=lambda i: 0.5 if i % 100 in (50, 51) else 50e-6)
    assert all(told.norms[100:])
    told = drive(governor(), 1_000, fixed=lambda i: 0.5 if i % 100 == 50 else 20e-6)
    assert all(told.norms[100:])


def test_a_sample_that_takes_long_does_not_silence_the_norm() -> None:
    told = drive(governor(), 2_000, sample=lambda i: 50e-3)
    assert any(told.samples)
    assert all(told.norms[100:])


def test_samples_are_taken_also_where_no_norm_can_be_on_every_step() -> None:
    told = drive(governor(), 4_000, norm=lambda i: 500e-6)
    assert told.norms.count(True) == pytest.approx(4_000 * 52.5e-6 / 500e-6, rel=0.15)
    assert told.samples.count(True) == pytest.approx(4_000 * 17.5e-6 / 2e-3, rel=0.15)


def test_a_step_so_short_that_loss_and_lr_exceed_the_budget_still_has_norms() -> None:
    """They get a quarter of what of the budget is not kept, no more."""
    told = drive(governor(), 10_000, step_time=lambda i: 1e-3, sample=lambda i: 200e-6)
    assert told.norms.count(True) > 100
    assert told.cost / told.time == pytest.approx(0.25 * 0.9 * 0.01, rel=0.15)


def test_a_pause_between_steps_earns_no_burst() -> None:
    """An evaluation of a minute would pay for a thousand norms that cost half a millisecond."""
    told = drive(governor(), 400, step_time=lambda i: 60.0 if i == 200 else 1e-3, norm=lambda i: 500e-6)
    assert told.norms[201:].count(True) < 20


def test_a_cost_that_changes_for_good_is_followed() -> None:
    made = governor()
    drive(made, 500)
    told = drive(made, 1_000, norm=lambda i: 1e-3)
    assert told.norms[200:].count(True) == pytest.approx(800 * 60e-6 / 1e-3, rel=0.3)


def test_samples_that_get_expensive_do_not_take_much_more_than_the_budget_until_that_is_seen() -> None:
    """Most parameters were frozen, say, and are no longer."""
    made = governor()
    drive(made, 500, sample=lambda i: 0.1e-3)
    told = drive(made, 2_000, sample=lambda i: 50e-3)
    assert told.cost < 0.01 * told.time + 3 * 50e-3


def test_a_sample_that_was_free_does_not_make_all_later_ones_free() -> None:
    made = governor()
    made.spent(None, 20e-6, Costs(sample=0.0))
    told = drive(made, 1_000)
    assert told.cost < 0.011 * told.time
    assert 5 < told.samples.count(True) < 100


def test_the_overhead_is_what_was_taken() -> None:
    made = governor()
    drive(made, 2_000)
    assert made.overhead == pytest.approx(0.01, rel=0.25)


def test_what_the_link_takes_is_part_of_the_budget() -> None:
    """Of 100 µs a step 10 are kept, 20 go to every step, 10 to the link, a quarter of the rest to samples."""
    made = governor()
    made.beside = 0.001
    told = drive(made, 10_000)
    assert told.samples.count(True) == pytest.approx(10_000 * 15e-6 / 2e-3, rel=0.15)
    assert made.overhead == pytest.approx(0.009, rel=0.25)


@settings(max_examples=50)
@given(
    budget=st.floats(1e-4, 0.2),
    step=st.floats(1e-4, 1.0),
    norm=st.floats(1e-5, 1e-2),
    sample=st.floats(1e-4, 1e-1),
    histogram=st.floats(1e-5, 2e-1),
    fixed=st.floats(1e-6, 1e-4),
    spread=st.lists(st.floats(0.6, 1.6), min_size=7, max_size=7),
)
def test_the_budget_holds(
    budget: float,
    step: float,
    norm: float,
    sample: float,
    histogram: float,
    fixed: float,
    spread: list[float],
) -> None:
    """Norms, samples and histograms take what the budget leaves, but for what starts and ends in the middle,
    and for one of each in a thousand steps."""
    steps = 3_000
    told = drive(
        governor(budget),
        steps,
        step_time=lambda i: step * spread[i % 7],
        norm=lambda i: norm * spread[(i + 3) % 7],
        sample=lambda i: sample * spread[(i + 5) % 7],
        fixed=lambda i: fixed,
        histogram=lambda i: histogram * spread[(i + 1) % 7],
    )
    left = max(budget * told.time - fixed * steps, 0.25 * budget * told.time)
    assert told.cost <= 1.1 * left + 8 * 1.6 * (norm + sample + histogram)


def test_a_pause_between_two_steps_buys_no_burst() -> None:
    """With a long evaluation every twenty steps the share of the steps themselves stays the budget."""
    told = drive(governor(), 20_000, step_time=lambda i: 20.0 if i % 20 == 19 else 10e-3)
    steps = 20_000 * 10e-3
    assert told.cost + 20_000 * 20e-6 < 1.1 * 0.01 * steps
