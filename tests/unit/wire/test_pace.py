"""However many ranks a job has, a daemon gets no more messages a second of it than it can take."""

import pytest

from optwatch.wire.pace import LONGEST, MESSAGES, TURN, turn_time


@pytest.mark.parametrize("ranks", [1, 4, 250])
def test_a_small_job_speaks_ten_times_a_second(ranks: int) -> None:
    assert turn_time(ranks) == TURN


def test_a_large_job_takes_more_steps_at_a_time() -> None:
    assert 1_024 / turn_time(1_024) == pytest.approx(MESSAGES)
    assert turn_time(1 << 20) == LONGEST
