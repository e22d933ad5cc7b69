"""Records of parts wait for those of the other parts, but not in any amount of memory."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch.daemon import assembly
from optwatch.daemon.assembly import Assembly, Record
from optwatch.wire.messages import Schema, TensorInfo

STATS, COUNTS = ("grad_rms",), ("nonfinite",)


def schema(part: int) -> Schema:
    tensor = TensorInfo("w", (4, 2), "float32", 0, (("dp", part),), 4)
    return Schema(
        session="",
        optimizer=0,
        digest=f"part {part}",
        scalars=(),
        tensors=(tensor,),
        stats=STATS,
        counts=COUNTS,
    )


SCHEMAS = [schema(part) for part in range(2)]


def record(part: int, step: int) -> Record:
    return Record(step, SCHEMAS[part], np.ones((1, 1), np.float32), np.zeros((1, 1), np.uint64))


@pytest.mark.parametrize(("limit", "kept"), [(assembly.MAX_WAITING_BYTES, 20), (5 * record(0, 0).size, 5)])
def test_what_waits_is_bounded_in_bytes_and_the_newest_stays(
    limit: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "MAX_WAITING_BYTES", limit)
    made = Assembly()
    for part in range(2):
        made.introduce(part, SCHEMAS[part])
    for _ in range(2):  # sent twice, it is there once
        for step in range(1, 21):
            assert made.add(0, [record(0, step)]) == []
    whole = [r for step in range(1, 21) if step > 20 - kept for r in made.add(1, [record(1, step)])]
    assert [r.step for r in whole] == list(range(21 - kept, 21))
    assert whole[0].schema.tensors[0].shard == ()


def test_ranks_that_tell_of_no_tensors_stand_in_for_nobody() -> None:
    made = Assembly()
    for rank in range(2):
        made.introduce(rank, msgspec.structs.replace(SCHEMAS[rank], tensors=()))
    assert made.senders() == made.known == {0, 1}


def test_room_is_made_again_by_what_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_WAITING_BYTES", 2 * record(0, 0).size)
    made = Assembly()
    for part in range(2):
        made.introduce(part, SCHEMAS[part])
    for step in range(1, 50):
        assert made.add(0, [record(0, step)]) == []
        assert [r.step for r in made.add(1, [record(1, step)])] == [step]


def in_parts(part: int) -> Schema:
    """A third of one tensor, and all of another."""
    tensors = (
        TensorInfo("w", (9, 2), "float32", 0, (("dp", part),), 6),
        TensorInfo("b", (3,), "float32", 0),
    )
    return msgspec.structs.replace(SCHEMAS[0], digest=f"third {part}", tensors=tensors)


THIRDS = [in_parts(part) for part in range(3)]


@given(st.data())
def test_a_step_is_whole_as_soon_as_the_lowest_rank_of_each_part_has_sent_it(data: st.DataObject) -> None:
    """Whatever the order in which ranks come, send and go: six ranks, each part held by two of them."""
    made = Assembly()
    known: set[int] = set()
    waiting: dict[int, set[int]] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        if known and data.draw(st.integers(0, 4)) == 0:
            known &= data.draw(st.sets(st.integers(0, 5)))
            made.keep_only(known)
            continue
        rank, step = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
        known.add(rank)
        made.hold(rank, THIRDS[rank % 3])
        lowest = {min(r for r in known if r % 3 == part) for part in {r % 3 for r in known}}
        assert made.needs(rank) == (rank in lowest)
        if rank not in lowest:
            continue
        numbers = np.full((2, 1), rank, np.float32), np.full((2, 1), 1 + rank % 3, np.uint64)
        done = made.add(rank, [Record(step, THIRDS[rank % 3], *numbers)])
        waiting.setdefault(step, set()).add(rank)
        whole = [s for s in sorted(waiting) if len(lowest) == 3 and lowest <= waiting[s]]
        assert [r.step for r in done] == whole
        for record in done:
            del waiting[record.step]
            assert record.counts[:, 0].tolist() == [6, 1 + min(lowest) % 3]
            root = np.sqrt(np.mean(np.square([float(r) for r in lowest])))
            np.testing.assert_allclose(record.stats[:, 0], [root, min(lowest)], rtol=1e-6)
