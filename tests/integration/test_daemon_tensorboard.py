"""`optwatch daemon --tensorboard`: live files, read back by TensorBoard itself."""

import random
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Batch, OptimizerInfo
from tests.daemons import GUARD, DaemonProcess
from tests.histograms import counted
from tests.integration.test_daemon_restart import reconnect
from tests.peers import OPTIMIZER, AgentPeer, values

MANY = pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(900)])
SECOND = OptimizerInfo(name="critic", kind="SGD", groups=OPTIMIZER.groups, digest="other")


@pytest.mark.parametrize("kills", [3, MANY])
def test_each_step_is_written_once_for_each_optimizer_and_rank_whatever_kills_it(
    daemon: DaemonProcess, tmp_path: Path, kills: int
) -> None:
    """Two ranks with two optimizers each, under a daemon that is killed again and again."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    boards = tmp_path / "boards"
    daemon.stop()
    daemon.options = ("--tensorboard", str(boards), "--tensorboard-ranks", "apart", "--tensorboard-tensors")
    daemon.start()
    first = AgentPeer(daemon.address, world_size=2)
    agents = [first, AgentPeer(daemon.address, run=first.run, rank=1, world_size=2)]
    for agent in agents:
        agent.hello = msgspec.structs.replace(agent.hello, optimizers=(OPTIMIZER, SECOND))
        introduce(agent)
    spread: list[int] = []
    for kill in range(kills):
        for _ in range(dice.randint(1, 8)):
            n = dice.randint(1, 12)
            for agent in agents:
                train(agent, n)
            spread.append(agents[0].step)
        if kill % 2 == 0:  # with something on the disk already, and more under way
            settle(agents)
            grown(boards, agents)
            for agent in agents:
                train(agent, 3)
        daemon.kill()
        daemon.start()
        for at, agent in enumerate(agents):
            agents[at] = reconnect(agent, daemon)
            agents[at].send(second_schema(agents[at]))
            agent.close(linger=0)
            agents[at].resend()
    settle(agents)
    for agent in agents:
        agent.bye()
    settle(agents)
    assert daemon.stop() == 0
    steps = list(range(1, agents[0].step + 1))
    name = f"toy-{first.run[:8]}"
    critic = f"toy-critic-{first.run[:8]}"
    for directory, rank in [(name, None), (critic, None), (name, 0), (name, 1), (critic, 0), (critic, 1)]:
        path = boards / directory if rank is None else boards / directory / f"rank_{rank}"
        board = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        for tag in ("loss/train", "optwatch/grad_norm/global", "optwatch/lr/scheduled"):
            assert [event.step for event in board.Scalars(tag)] == steps, (path, tag)
        if rank is None:
            for tag in ("all", "layer.0.weight"):
                written = [event.step for event in board.Tensors(f"optwatch/gradient/{tag}")]
                assert set(spread) <= set(written), path
                assert Counter(written).most_common(1)[0][1] == 1
        if path == boards / name:
            assert [event.step for event in board.Scalars("outcome/steps")] == [steps[-1]]
            assert "_hparams_/session_end_info" in board.Tags()["tensors"]
            assert len(board.Tensors("custom_scalars__config__")) == 1
        if rank == 1:  # its own losses, not the mean
            assert board.Scalars("loss/train")[0].value == pytest.approx(3.0)
    for agent in agents:
        agent.close(linger=0)
    daemon.start()


def second_schema(agent: AgentPeer) -> msgspec.Struct:
    return msgspec.structs.replace(agent.schema, optimizer=1)


def introduce(agent: AgentPeer) -> None:
    agent.greet()
    agent.send(second_schema(agent))  # type: ignore[arg-type]


def train(agent: AgentPeer, n: int) -> None:
    """The next n steps of both optimizers, with histograms at the last."""
    tensors, columns = len(agent.schema.tensors), len(agent.schema.scalars)
    step = np.arange(agent.step + 1, agent.step + 1 + n, dtype=np.int64)
    row = counted(np.random.default_rng(int(step[-1])).normal(size=50)).astype(np.uint32)
    for optimizer in (0, 1):
        agent.seq += 1
        blocks = BatchBlocks(
            step=step,
            wall=1e9 + step * 0.01,
            scalars=values(n) + 2.0 * agent.hello.rank,
            logged=np.ones((n, columns), dtype=np.uint8),
            sample_step=step[n:],
            stats=np.empty((0, tensors, len(agent.schema.stats)), dtype=np.float32),
            counts=np.empty((0, tensors, len(agent.schema.counts)), dtype=np.uint64),
            histogram_step=step[-1:],
            histograms=np.tile(row, (1, tensors, 1)),
        )
        header = Batch(
            session=agent.session,
            seq=agent.seq,
            optimizer=optimizer,
            schema=agent.schema.digest,
            steps=n,
            sampled=0,
            histograms=1,
        )
        agent.durable(header, blocks.blocks())
    agent.step = int(step[-1])


def settle(agents: list[AgentPeer]) -> None:
    for agent in agents:
        agent.wait_acked()


def grown(boards: Path, agents: list[AgentPeer]) -> None:
    """Wait until what is on the disk grows."""

    def size() -> int:
        return sum(path.stat().st_size for path in boards.rglob("events*"))

    before, end = size(), time.monotonic() + GUARD
    while size() <= before:
        assert time.monotonic() < end, "nothing is written"
        for agent in agents:
            agent.receive(0.05)
