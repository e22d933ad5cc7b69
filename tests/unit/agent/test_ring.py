"""The ring that holds what the daemon has not acknowledged: what goes first when it is full."""

import numpy as np

from optwatch.wire.frames import BatchBlocks, agent_decoder, pack, unpack
from optwatch.wire.messages import Batch, Schema, TensorInfo
from optwatch_agent.ring import Held, Ring

SCHEMA = Schema(
    session="s",
    optimizer=0,
    digest="d",
    scalars=("loss",),
    tensors=tuple(TensorInfo(f"layer.{i}", (3,), "float32", 0) for i in range(20)),
    stats=("grad_rms",),
    counts=("grad_zeros",),
)


def add(ring: Ring, seq: int, *, sampled: bool) -> None:
    """A batch of the two steps 2 seq and 2 seq + 1, where sampled with a record of the second one."""
    step = np.array([2 * seq, 2 * seq + 1], dtype=np.int64)
    k = int(sampled)
    blocks = BatchBlocks(
        step=step,
        wall=step.astype(np.float64),
        scalars=step.astype(np.float64)[:, None],
        logged=np.ones((2, 1), dtype=np.uint8),
        sample_step=step[2 - k :],
        stats=np.ones((k, 20, 1), dtype=np.float32),
        counts=np.ones((k, 20, 1), dtype=np.uint64),
    )
    batch = Batch(session="s", seq=seq, optimizer=0, schema="d", steps=2, sampled=k)
    ring.add(seq, pack(batch, blocks.blocks()), batch, "d")


def read(held: Held) -> BatchBlocks:
    message, blocks = unpack(held.parts, agent_decoder)
    assert isinstance(message, Batch)
    assert message.seq == held.seq
    return BatchBlocks.read(blocks, message, SCHEMA)


def size_of(*, sampled: bool) -> int:
    ring = Ring()
    add(ring, 1, sampled=sampled)
    return next(iter(ring)).size


def test_the_oldest_records_go_first_and_all_scalars_stay() -> None:
    ring = Ring(most=6 * size_of(sampled=True))
    for seq in range(1, 11):
        add(ring, seq, sampled=True)
    kept = {held.seq: read(held) for held in ring}
    assert list(kept) == list(range(1, 11))
    assert all(blocks.scalars[:, 0].tolist() == [2 * seq, 2 * seq + 1] for seq, blocks in kept.items())
    with_records = [seq for seq, blocks in kept.items() if len(blocks.sample_step)]
    assert with_records == list(range(11 - len(with_records), 11))
    assert ring.thinned == 10 - len(with_records) > 0
    assert ring.dropped == 0


def test_whole_messages_go_when_no_records_are_left() -> None:
    ring = Ring(most=3 * size_of(sampled=False))
    for seq in range(1, 11):
        add(ring, seq, sampled=seq % 2 == 0)
    assert [held.seq for held in ring][-1] == 10
    assert ring.oldest == 11 - len(ring)
    assert ring.dropped == 2 * (10 - len(ring))
    assert ring.thinned == 5 - sum(held.records is not None for held in ring)


def test_what_is_acknowledged_makes_room() -> None:
    ring = Ring(most=4 * size_of(sampled=True))
    for seq in range(1, 101):
        add(ring, seq, sampled=True)
        ring.forget(seq - 2)
    assert [held.seq for held in ring] == [99, 100]
    assert all(len(read(held).sample_step) for held in ring)
    assert (ring.thinned, ring.dropped) == (0, 0)
    ring.forget(100)
    assert (len(ring), ring.oldest) == (0, None)


def test_one_message_that_is_too_large_is_kept() -> None:
    ring = Ring(most=10)
    add(ring, 1, sampled=True)
    assert len(ring) == 1
    add(ring, 2, sampled=True)
    assert [held.seq for held in ring] == [2]
    assert (ring.thinned, ring.dropped) == (1, 2)
