"""What the daemon makes of checksums that come late, never, from two replicas, or from no replicas at all."""

import numpy as np

from optwatch.daemon.replicas import PATIENCE, UNDECIDED, WAIT, Replicas
from optwatch.detect.base import Signal
from optwatch.wire.messages import Sums


def told(
    replicas: Replicas, step: int, values: dict[int, int], now: float, declared: bool = True
) -> list[Signal]:
    """One group's checksum of each rank at a step; what is found once nobody answers questions."""
    for rank, value in values.items():
        replicas.take(rank, 0, step, {"#a": value}, declared, now)
    found = replicas.look(values, now)
    return found + replicas.look(values, now + PATIENCE)


def test_the_odd_one_is_named_once_and_resolved_when_it_agrees() -> None:
    replicas = Replicas()
    assert told(replicas, 8, {0: 5, 1: 5, 2: 5}, 0.0) == []
    (found,) = told(replicas, 16, {0: 5, 1: 5, 2: 6}, 1.0)
    assert (found.kind, found.severity, found.rank, found.step, found.onset_step) == (
        "replica_desync",
        "critical",
        2,
        16,
        9,
    )
    assert replicas.checked == {0: (16, True), 1: (16, True), 2: (16, False)}
    assert list(replicas.agreed) == [(8, True), (16, False)]
    assert told(replicas, 24, {0: 5, 1: 5, 2: 7}, 2.0) == []
    (over,) = told(replicas, 32, {0: 5, 1: 5, 2: 5}, 3.0)
    assert (over.key, over.over, over.rank) == (found.key, True, 2)
    (again,) = told(replicas, 40, {0: 5, 1: 5, 2: 6}, 4.0)
    assert not again.over


def test_of_two_nobody_is_named_and_a_rank_known_to_be_off_has_no_say() -> None:
    replicas = Replicas()
    (found,) = told(replicas, 8, {0: 5, 1: 6}, 0.0)
    assert (found.rank, found.over) == (None, False)
    replicas = Replicas()
    told(replicas, 8, {0: 5, 1: 5, 2: 6}, 0.0)
    assert told(replicas, 16, {0: 5, 2: 6}, 1.0) == [], "rank 2 is known to be off; rank 1 is gone"


def test_what_never_agreed_and_has_no_majority_is_no_replica_unless_it_is_declared() -> None:
    apart = {0: 1, 1: 2, 2: 3}
    replicas = Replicas()
    assert told(replicas, 8, apart, 0.0, declared=False) == []
    assert replicas.checked == dict.fromkeys(apart, (8, None))
    assert told(replicas, 16, dict.fromkeys(apart, 4), 1.0, declared=False) == []
    assert len(told(replicas, 24, apart, 2.0, declared=False)) == 1, "they have agreed once"
    assert len(told(Replicas(), 8, apart, 0.0)) == 1


def test_a_rank_that_is_late_is_waited_for_and_one_that_never_checks_is_not() -> None:
    replicas = Replicas()
    for rank, value in ((0, 5), (1, 6)):
        replicas.take(rank, 0, 8, {"#a": value}, True, 0.0)
    assert replicas.look({0, 1, 2}, WAIT / 2) == []
    assert not replicas.questions
    replicas.take(2, 0, 8, {"#a": 5}, True, WAIT / 2)
    replicas.look({0, 1, 2}, WAIT / 2)
    assert [(q.rank, q.step) for q in replicas.questions] == [(0, 8), (1, 8), (2, 8)]
    replicas = Replicas()
    for rank in (0, 1):
        replicas.take(rank, 0, 8, {"#a": 5}, True, 0.0)
    replicas.look({0, 1, 2}, WAIT)
    assert replicas.checked == {0: (8, True), 1: (8, True)}


def test_a_check_that_only_some_ranks_made_does_not_hold_up_the_next() -> None:
    replicas = Replicas()
    replicas.take(0, 0, 8, {"#a": 5}, True, 0.0)
    for rank in (0, 1):
        replicas.take(rank, 0, 16, {"#a": 6}, True, 0.1)
    replicas.look({0, 1}, 0.2)
    assert replicas.checked == {0: (16, True), 1: (16, True)}


def test_what_two_of_three_check_waits_for_the_third_to_say_who_is_right() -> None:
    replicas = Replicas()
    told(replicas, 8, {0: 5, 1: 5, 2: 5}, 0.0)
    replicas.take(0, 0, 16, {"#a": 5}, True, 1.0)
    replicas.take(1, 0, 16, {"#a": 6}, True, 1.0)
    for rank, value in enumerate((5, 6, 5)):
        replicas.take(rank, 0, 32, {"#a": value}, True, 2.0)
    replicas.look({0, 1, 2}, 2.0)
    (found,) = replicas.look({0, 1, 2}, 2.0 + PATIENCE)
    assert (found.rank, found.step, found.onset_step) == (1, 32, 9)


def test_it_does_not_wait_for_ever() -> None:
    replicas = Replicas()
    told(replicas, 8, {0: 5, 1: 5, 2: 5}, 0.0)
    found = []
    for i in range(UNDECIDED + 1):
        replicas.take(0, 0, 16 + i, {"#a": 5}, True, 10.0 * i)
        replicas.take(1, 0, 16 + i, {"#a": 6}, True, 10.0 * i)
        found += replicas.look({0, 1, 2}, 10.0 * i + WAIT)
        found += replicas.look({0, 1, 2}, 10.0 * i + WAIT + PATIENCE)
    assert [(each.rank, each.step) for each in found] == [(None, 16 + UNDECIDED)]


def test_the_details_name_the_tensor_and_its_parts() -> None:
    replicas = Replicas()
    for rank, value in enumerate((5, 5, 6)):
        replicas.take(rank, 0, 8, {"#a": value}, True, 0.0)
    assert replicas.look({0, 1, 2}, 0.0) == []
    for question in replicas.questions:
        block = np.array([[1, 2], [3, 4 + (question.rank == 2)]], dtype=np.uint64)
        sums = Sums(
            session="",
            optimizer=0,
            step=8,
            names=("up", "down"),
            groups=("#a", "#a"),
            parts=("parameter", "exp_avg"),
        )
        replicas.detail(question.rank, sums, block)
    (found,) = replicas.look({0, 1, 2}, 0.0)
    assert (found.rank, found.tensor, found.evidence["parts"]) == (2, "down", "exp_avg")
    assert (found.evidence["tensors"], found.evidence["of_tensors"]) == (1, 2)


def test_a_difference_that_is_over_before_the_details_come_is_told_all_the_same() -> None:
    replicas = Replicas()
    for step, odd in ((8, 6), (16, 5), (24, 5)):
        for rank, value in enumerate((5, 5, odd)):
            replicas.take(rank, 0, step, {"#a": value}, True, 0.0)
        if step < 24:
            assert replicas.look({0, 1, 2}, 0.0) == []
    signals = replicas.look({0, 1, 2}, PATIENCE)
    assert [(signal.rank, signal.over) for signal in signals] == [(2, False)]
    for rank in range(3):
        replicas.take(rank, 0, 32, {"#a": 5}, True, PATIENCE)
    assert [(s.rank, s.over) for s in replicas.look({0, 1, 2}, PATIENCE)] == [(2, True)]


def test_what_waits_is_bounded() -> None:
    replicas = Replicas()
    for step in range(10_000):
        replicas.take(0, 0, step, {"#a": 5}, True, 0.0)
    assert replicas.missed > 9_000
    assert replicas.look({0, 1}, 0.0) == []
