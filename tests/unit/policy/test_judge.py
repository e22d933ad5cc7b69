"""Verdicts on series whose course is known."""

import numpy as np
import pytest

from optwatch.policy.history import KEPT, History
from optwatch.policy.judge import fit_trend, judge
from tests.unit.policy.driver import healthy, points


def history(loss: np.ndarray) -> History:
    kept = History()
    for start in range(0, len(loss), 100):
        kept.append(points(1 + start, loss[start : start + 100]))
    return kept


def run(*pieces: np.ndarray) -> History:
    return history(np.concatenate(pieces))


STEPS = np.arange(1, 801)


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_comes_back_after_the_action_was_helped(seed: int) -> None:
    loss = healthy(STEPS, seed)
    loss[299:305] = 3.0
    outcome = judge(history(loss), 300, 305, 505)
    assert outcome.verdict == "helped"
    assert outcome.numbers["recovered"] == pytest.approx(1, abs=0.1)
    assert outcome.numbers["before"] == pytest.approx(3.0)
    assert outcome.numbers["after"] < outcome.numbers["without"]


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_stays_up_was_not_helped(seed: int) -> None:
    loss = healthy(STEPS, seed)
    loss[299:] = 3.0 + np.random.default_rng(seed).normal(0, 0.02, 501)
    assert judge(history(loss), 300, 305, 505).verdict == "neutral"


def test_a_loss_that_rises_further_was_hurt() -> None:
    loss = healthy(STEPS)
    loss[299:] = 3.0
    loss[305:] = 9.0
    assert judge(history(loss), 300, 305, 505).verdict == "hurt"


def test_a_loss_that_was_coming_back_by_itself_is_unclear() -> None:
    loss = healthy(STEPS)
    loss[299:] += 3 * np.exp(-np.arange(501) / 60)
    assert judge(history(loss), 300, 380, 580).verdict == "unclear"


def test_a_jump_out_of_a_recovery_that_had_all_but_stopped_was_helped() -> None:
    loss = healthy(STEPS)
    loss[299:] += 3 / (1 + np.arange(501) / 10)
    assert judge(history(loss), 300, 420, 620).verdict != "helped", "no action at all"
    loss[420:] = healthy(STEPS)[420:]
    outcome = judge(history(loss), 300, 420, 620)
    assert outcome.verdict == "helped"
    assert outcome.numbers["after"] < outcome.numbers["without"] < outcome.numbers["before"]


def test_a_loss_that_turns_nan_was_hurt_and_one_that_was_nan_before_was_not() -> None:
    loss = healthy(STEPS)
    loss[310:] = np.nan
    assert judge(history(loss), 300, 305, 505).verdict == "hurt"
    loss[300:] = np.nan
    assert judge(history(loss), 300, 310, 510).verdict == "neutral"
    loss[320:] = 0.5
    assert judge(history(loss), 300, 319, 519).verdict == "helped"


@pytest.mark.parametrize("seed", range(20))
def test_an_action_on_a_healthy_run_that_changes_nothing_is_neutral(seed: int) -> None:
    assert judge(history(healthy(STEPS, seed)), 500, 500, 700).verdict == "neutral"


def test_an_action_that_slows_a_healthy_run_down_has_hurt() -> None:
    loss = healthy(STEPS)
    loss[500:] += np.minimum(np.arange(300) / 100, 1) * 0.3
    outcome = judge(history(loss), 500, 500, 700)
    assert outcome.verdict == "hurt"
    assert outcome.numbers["after"] > outcome.numbers["without"]


def test_too_few_points_make_no_verdict() -> None:
    assert judge(history(healthy(STEPS[:4])), 2, 2, 4).verdict == "unclear"
    assert judge(History(), 2, 2, 202).verdict == "unclear"


def test_the_trend_is_blind_to_outliers() -> None:
    steps = np.arange(1.0, 201.0)
    loss = 5 - 0.5 * np.log(steps)
    loss[::10] = 100
    trend = fit_trend(steps, loss)
    assert trend is not None
    assert trend.at(400) == pytest.approx(5 - 0.5 * np.log(400), abs=0.15)


def test_the_history_keeps_its_bound_and_the_best_level_ever() -> None:
    kept = run(np.full(500, 2.0), np.full(100, 0.5), np.full(5_000, 1.0))
    assert len(kept) <= KEPT
    assert kept.best(5_000) == 0.5
    assert kept.best(1) == 0.5  # forgotten points lie before every step that can be asked for
