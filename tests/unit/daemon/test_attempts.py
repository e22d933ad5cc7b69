"""Which incarnation of its run a process belongs to."""

import msgspec

from optwatch.daemon.attempts import incarnation_of
from optwatch.daemon.head import Head, new_head
from optwatch.wire.messages import Hello


def hello(rank: int = 0, world_size: int = 2, pid: int = 1, started: float = 1.0, count: int = 0) -> Hello:
    return Hello(
        protocol=1,
        session=f"{rank} {pid}",
        run="r",
        name="n",
        incarnation=count,
        job="j",
        rank=rank,
        world_size=world_size,
        host="h",
        pid=pid,
        started=started,
        optimizers=(),
        allow=(),
        control="armed",
    )


def head(incarnation: int = 0) -> Head:
    return new_head(msgspec.structs.replace(hello(), incarnation=incarnation), "advise")


def test_the_ranks_of_one_attempt_belong_together() -> None:
    assert incarnation_of(hello(rank=1), head(), None) == 0
    assert incarnation_of(hello(rank=1, pid=2), head(3), hello(rank=1)) == 3, "rank 0 came first"


def test_the_launchers_count_is_believed() -> None:
    assert incarnation_of(hello(pid=2, started=2.0, count=2), head(), hello()) == 2


def test_another_process_or_size_begins_a_new_one_whatever_the_launcher_counts() -> None:
    assert incarnation_of(hello(pid=2, started=2.0), head(), hello()) == 1
    assert incarnation_of(hello(rank=2, world_size=3, pid=9, started=2.0), head(), None) == 1
    former = msgspec.structs.replace(hello(), incarnation=1)
    assert incarnation_of(hello(pid=3, started=3.0, count=1), head(1), former) == 2


def test_attaching_again_in_one_process_goes_on() -> None:
    assert incarnation_of(hello(started=2.0), head(), hello()) == 0


def test_a_former_process_that_comes_late_stays_a_former_one() -> None:
    newer = msgspec.structs.replace(hello(pid=2, started=2.0), incarnation=1)
    assert incarnation_of(hello(), head(1), newer) == 0
