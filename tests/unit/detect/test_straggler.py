"""Which rank is called a straggler, from ranks' own times."""

import numpy as np
import pytest

from optwatch.detect.base import Signal
from optwatch.detect.straggler import FOR, MAX_WAITING, WINDOW, Stragglers
from optwatch.series.points import Column, Points


def points(first: int, arrivals: np.ndarray, step_time: float) -> Points:
    n = len(arrivals)
    there = np.ones(n, dtype=bool)
    columns = {"arrival": Column(arrivals, there), "step_time": Column(np.full(n, step_time), there)}
    return Points(np.arange(first, first + n), columns)


def told(
    stragglers: Stragglers, arrivals: np.ndarray, first: int = 1, step_time: float = 0.04
) -> list[Signal]:
    """Feed own times [steps, ranks] in chunks, as they come."""
    signals = []
    for at in range(0, len(arrivals), 7):
        for rank in range(arrivals.shape[1]):
            stragglers.take(rank, points(first + at, arrivals[at : at + 7, rank], step_time))
        signals += stragglers.look(range(arrivals.shape[1]))
    return signals


def noise(steps: int, ranks: int, seed: int) -> np.ndarray:
    """Own times of 20 ms, with noise that all share and noise of each rank's own, both with long tails."""
    draw = np.random.default_rng(seed)
    shared = draw.gamma(1.0, 0.015, size=(steps, 1))
    return 0.02 + shared + draw.gamma(1.0, 0.001, size=(steps, ranks))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_a_rank_that_is_20_ms_slower_is_named_within_50_steps_and_let_go_when_it_recovers(ranks: int) -> None:
    slow = noise(600, ranks, seed=ranks)
    slow[200:400, 1] += 0.02
    found, over = told(Stragglers(), slow)
    assert (found.kind, found.severity, found.rank, found.over) == ("straggler", "warning", 1, False)
    assert 200 < found.step <= 250
    assert found.evidence["behind"] == pytest.approx(0.02, rel=0.1)
    assert (over.rank, over.over) == (1, True)
    assert 400 < over.step <= 450


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_nobody_is_named_in_noise_nor_for_a_few_slow_steps(ranks: int) -> None:
    clean = noise(20_000, ranks, seed=10 + ranks)
    clean[::10, 1] += 0.5  # a checkpoint, say
    clean[1_000 : 1_000 + WINDOW // 2, 0] += 0.1
    assert told(Stragglers(), clean) == []


def test_several_late_ranks_are_all_named_and_a_small_difference_is_not() -> None:
    slow = noise(200, 5, seed=1)
    slow[:, [1, 3]] += 0.03
    assert {signal.rank for signal in told(Stragglers(), slow)} == {1, 3}
    slow = noise(200, 5, seed=1)
    slow[:, 2] += 0.02
    assert told(Stragglers(), slow, step_time=2.0) == [], "1 % of the step time"


def test_the_lateness_counts_from_the_earliest_rank() -> None:
    stragglers = Stragglers()
    slow = noise(100, 3, seed=4)
    slow[:, 2] += 0.01
    told(stragglers, slow)
    assert stragglers.lateness[0] < 0.003
    assert stragglers.lateness[2] == pytest.approx(0.0115, abs=0.002)


def test_what_waits_for_other_ranks_is_bounded_and_hostile_times_do_no_harm() -> None:
    stragglers = Stragglers()
    stragglers.take(0, points(1, np.full(10_000, 0.02), 0.04))
    assert len(stragglers._waiting) == MAX_WAITING
    odd = np.array([np.nan, np.inf, -1.0, 0.0, 1e300] * 40)
    assert told(Stragglers(), np.stack([odd, odd], axis=1)) == []


def test_after_a_restart_of_the_daemon_the_named_rank_is_not_named_again() -> None:
    stragglers = Stragglers()
    stragglers.restore([1])
    slow = noise(200, 3, seed=6)
    slow[:100, 1] += 0.02
    (over,) = told(stragglers, slow)
    assert (over.rank, over.over) == (1, True)
    assert FOR + WINDOW < 100
