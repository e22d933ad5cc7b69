"""Records of parts wait for those of the other parts, but not in any amount of memory."""

import numpy as np
import pytest

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


def test_room_is_made_again_by_what_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_WAITING_BYTES", 2 * record(0, 0).size)
    made = Assembly()
    for part in range(2):
        made.introduce(part, SCHEMAS[part])
    for step in range(1, 50):
        assert made.add(0, [record(0, step)]) == []
        assert [r.step for r in made.add(1, [record(1, step)])] == [step]
