"""What a lane counts as recorded, over ranks and incarnations."""

import numpy as np

from optwatch.daemon.lane import Lane
from optwatch.series.points import Points


def cover(lane: Lane, incarnation: int, rank: int, first: int, last: int) -> None:
    lane.cover(incarnation, rank, Points(np.arange(first, last + 1), {}, None, None))


def test_steps_that_a_new_incarnation_repeats_count_once_and_those_it_has_yet_to_reach_do_not() -> None:
    lane = Lane()
    cover(lane, 0, 0, 1, 37)
    assert lane.recorded() == 37
    cover(lane, 1, 0, 11, 20)
    assert (lane.recorded(), lane.gaps()) == (20, ())
    cover(lane, 1, 0, 21, 50)
    assert (lane.recorded(), lane.gaps()) == (50, ())


def test_a_rank_that_was_not_part_of_a_smaller_job_has_lost_nothing() -> None:
    lane = Lane()
    for incarnation, ranks, first, last in ((0, 2, 1, 100), (1, 1, 91, 300), (2, 2, 251, 400)):
        for rank in range(ranks):
            cover(lane, incarnation, rank, first, last)
    assert (lane.recorded(), lane.gaps()) == (400, ())


def test_what_nobody_has_between_two_incarnations_is_a_gap() -> None:
    lane = Lane()
    cover(lane, 0, 0, 1, 90)
    cover(lane, 1, 0, 101, 120)
    assert (lane.recorded(), lane.gaps()) == (110, ((91, 100),))


def test_a_rank_that_lost_steps_is_told_beside_one_that_has_them() -> None:
    lane = Lane()
    cover(lane, 0, 0, 1, 30)
    cover(lane, 0, 1, 1, 10)
    cover(lane, 0, 1, 21, 30)
    assert (lane.recorded(), lane.gaps()) == (30, ((11, 20),))
