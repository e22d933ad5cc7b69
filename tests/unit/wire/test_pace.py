"""However many ranks a job has, a daemon gets no more messages a second of it than it can take."""

import pytest

from optwatch.wire.pace import LONGEST, MESSAGES, QUICK_MESSAGES, QUICK_TURN, TURN, Pace


@pytest.mark.parametrize("ranks", [1, 4, 250])
def test_a_small_job_speaks_five_times_a_second(ranks: int) -> None:
    assert Pace(ranks).turn == TURN


def test_a_large_job_takes_more_steps_at_a_time() -> None:
    assert 1_024 / Pace(1_024).turn == pytest.approx(MESSAGES)
    assert Pace(1 << 20).turn == LONGEST


@pytest.mark.parametrize("ranks", [1, 4, 15])
def test_after_something_unusual_a_small_job_speaks_at_once(ranks: int) -> None:
    assert Pace(ranks).quick_turn == QUICK_TURN


@pytest.mark.parametrize("ranks", [250, 1_024, 1 << 20])
def test_after_something_unusual_a_large_job_speaks_once_more(ranks: int) -> None:
    pace = Pace(ranks)
    assert pace.quick_turn == pytest.approx(min(ranks / QUICK_MESSAGES, LONGEST))
    assert pace.quick_turn <= pace.haste
    assert pace.quick_turn <= pace.turn


@pytest.mark.parametrize("ranks", [20, 250, 500, 1_024])
def test_then_the_daemon_has_time_to_catch_up(ranks: int) -> None:
    pace = Pace(ranks)
    turns = 1 + pace.haste / pace.quick_turn
    assert turns * ranks / pace.calm < 1.1 * MESSAGES
