"""Ranks that hold parts of the tensors come back from the daemon as one run with whole tensors."""

import time
import uuid

import msgspec
import numpy as np

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import COUNTS, STATS, Batch, TensorInfo
from optwatch.wire.parts import Part
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer


def peer(address: str, run: str, rank: int, world: int, shards: int) -> AgentPeer:
    """A rank that holds 3 or 5 of 8 elements of a tensor, and 2 of another whole."""
    shard = rank % shards
    key = (("dp", shard, shards),)
    columns = ("loss", Part("grad_norm", key, "11111111").column, "grad_norm@#22222222")
    agent = AgentPeer(address, run=run, rank=rank, world_size=world, columns=columns)
    agent.schema = msgspec.structs.replace(
        agent.schema,
        digest=f"shard {shard}",
        tensors=(
            TensorInfo("w", (8,), "float32", 0, (("dp", shard),), (3, 5)[shard]),
            TensorInfo("b", (2,), "float32", 0),
        ),
    )
    agent.greet()
    return agent


def send(agent: AgentPeer, steps: range) -> None:
    """Steps whose norms are 3 or 4 for the part and 12 for the whole, sampled at the last of them."""
    rank, n = agent.hello.rank, len(steps)
    shard = agent.schema.tensors[0].shard[0][1]
    stats = np.full((1, 2, len(STATS)), np.nan, np.float32)
    stats[0, :, STATS.index("grad_rms")] = ((2.0, 6.0)[shard], 1.0)
    stats[0, :, STATS.index("param_max")] = ((2.0, 6.0)[shard], 1.0)
    blocks = BatchBlocks(
        step=np.array(steps, dtype=np.int64),
        wall=np.full(n, 1e9),
        scalars=np.tile([float(rank), (3.0, 4.0)[shard], 12.0], (n, 1)),
        logged=np.ones((n, 3), np.uint8),
        sample_step=np.array([steps[-1]], dtype=np.int64),
        stats=stats,
        counts=np.full((1, 2, len(COUNTS)), shard + 1, np.uint64),
    )
    agent.seq += 1
    agent.step = steps[-1]
    agent.durable(
        Batch(
            session=agent.session,
            seq=agent.seq,
            optimizer=0,
            schema=agent.schema.digest,
            steps=n,
            sampled=1,
        ),
        blocks.blocks(),
    )


def check(daemon: DaemonProcess, run: str, steps: int, loss: float) -> None:
    with daemon.client() as client:
        end = time.monotonic() + GUARD
        while True:
            view, series, tensors = client.view(run)
            if len(series.step) == steps and tensors.step.tolist()[-1:] == [steps]:
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        assert set(view.series.columns) == {"loss", "grad_norm"}
        at = view.series.columns.index("grad_norm")
        np.testing.assert_allclose(series.values[:, at], 13.0, rtol=1e-15)
        np.testing.assert_allclose(series.values[:, 1 - at], loss)
        assert [(t.name, t.shape, t.shard, t.held) for t in view.tensors.tensors] == [
            ("w", (8,), (), None),
            ("b", (2,), (), None),
        ]
        rms = np.sqrt((3 * 2.0**2 + 5 * 6.0**2) / 8)
        np.testing.assert_allclose(tensors.stats[-1, :, STATS.index("grad_rms")], [rms, 1.0], rtol=1e-6)
        np.testing.assert_allclose(tensors.stats[-1, :, STATS.index("param_max")], [6.0, 1.0])
        assert tensors.counts[-1].tolist() == [[3] * len(COUNTS), [1] * len(COUNTS)]
        again = client.tensors(run)[1]
        np.testing.assert_array_equal(again.stats[-1], tensors.stats[-1])


def test_two_shards_are_one_run_live_and_from_the_store(daemon: DaemonProcess) -> None:
    run = uuid.uuid4().hex
    agents = [peer(daemon.address, run, rank, 2, 2) for rank in range(2)]
    for first in (1, 11):
        for agent in agents:
            send(agent, range(first, first + 10))
    for agent in agents:
        agent.wait_acked()
    check(daemon, run, 20, 0.5)
    for agent in agents:
        agent.close()
    daemon.restart()
    check(daemon, run, 20, 0.5)


def test_of_replicas_the_lowest_counts_and_another_takes_over(daemon: DaemonProcess) -> None:
    run = uuid.uuid4().hex
    agents = [peer(daemon.address, run, rank, 4, 2) for rank in range(4)]
    for agent in agents:
        send(agent, range(1, 11))
    for agent in agents:
        agent.wait_acked()
    check(daemon, run, 10, 1.5)
    agents[0].bye()
    agents[0].wait_acked()
    with daemon.client() as client:
        end = time.monotonic() + GUARD
        first = 11
        # Until another rank has taken over, the steps sent lack a part: the last ones may all be left out.
        while client.tensors(run)[1].step.tolist()[-1:] in ([], [10]):
            assert time.monotonic() < end
            for agent in agents[1:]:
                send(agent, range(first, first + 10))
                agent.wait_acked()
            first += 10
    for agent in agents:
        agent.close()
