"""What makes the link quick, and what does not."""

import math

import numpy as np
import pytest

from optwatch_agent.haste import Range


def hits(values: object) -> list[int]:
    seen = Range()
    return [at for at, value in enumerate(np.asarray(values, dtype=float)) if seen.left_by(float(value))]


def falling(steps: int = 1_000) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.01, steps)
    return 0.1 + np.exp(-np.arange(steps) / 200) + noise


def test_a_noisy_loss_that_falls_is_nothing_unusual() -> None:
    assert len(hits(falling())) <= 5


@pytest.mark.parametrize("bad", [3.0, math.nan, math.inf])
def test_a_loss_that_jumps_is_unusual_at_once(bad: float) -> None:
    loss = falling()
    loss[700] = bad
    assert 700 in hits(loss)
    assert len(hits(loss)) <= 6, "once is enough"


def test_the_first_values_and_a_constant_are_nothing_unusual() -> None:
    assert hits([1.0, 5.0, 9.0, 30.0]) == []
    assert hits(np.full(100, 2.0)) == []


def test_below_zero_it_is_the_same() -> None:
    loss = falling() - 10
    loss[700] = -5.0
    assert 700 in hits(loss)
