"""Single flipped bits in one of several replicas: all found at the next check, with rank and tensor."""

import pytest

from tests.distributed.flips import PARTS, Score, Training, clean_checks, trial

STATE = PARTS[:3]


@pytest.mark.parametrize(
    ("flips", "clean"),
    [(100, 100), pytest.param(1_000, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_flips_of_parameters_and_moments_are_all_found_and_nothing_else(flips: int, clean: int) -> None:
    score = trial(flips, STATE)
    assert (score.found, score.missed, score.misnamed, score.false) == (flips, 0, 0, 0), score
    score = Score()
    clean_checks(Training(3, seed=1), clean, score)
    assert (score.clean, score.false) == (clean, 0), score


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flips", [1_000])
def test_flips_a_step_before_the_check_are_found_where_they_left_a_difference(flips: int) -> None:
    score = trial(flips, STATE, between=1)
    told = score.found + score.absorbed + score.destroyed
    assert (told, score.missed, score.misnamed, score.false) == (flips, 0, 0, 0), score
    assert score.found > 0.8 * flips, score


@pytest.mark.parametrize(
    "flips", [50, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_flips_of_reduced_gradients_are_found_where_they_changed_anything(flips: int) -> None:
    score = trial(flips, ("gradient",))
    told = score.found + score.absorbed
    assert (told, score.missed, score.misnamed, score.false) == (flips, 0, 0, 0), score
    assert score.found > 0.8 * flips, score


def test_of_two_replicas_nobody_is_named() -> None:
    score = trial(20, STATE, ranks=2)
    assert (score.found, score.missed, score.misnamed, score.false) == (20, 0, 0, 0), score
