"""How much of one core the daemon takes for N ranks: `python -m tests.benchmarks.ingest --ranks 64`.

Real sockets and a real daemon process; the ranks are simulated by one process that sends batches at the
pace of real ones. Of the ranks with the same part of the tensors one sends their statistics and the others
do not, as the daemon tells them; with `--all` everyone does, as if it had not. Reported: the daemon's CPU
seconds per second, its memory, what the ranks sent, what was lost.
"""

import argparse
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import zmq

from optwatch.wire.messages import Assign, TensorInfo, Welcome
from tests.daemons import DaemonProcess, home_of_its_own
from tests.peers import AgentPeer

COLUMNS = ("loss", "grad_norm", "step_time", "update_norm", "param_norm", "lr")
BEAT = 1.0


class Rank:
    """A rank that holds one of the parts of all tensors and does as it is told."""

    def __init__(self, agent: AgentPeer, shard: int, shards: int, obeys: bool) -> None:
        self.agent = agent
        self.reduced = False
        self._obeys = obeys
        self._next_beat = 0.0
        if shards > 1:
            tensors = tuple(
                TensorInfo(t.name, (shards * t.shape[0], t.shape[1]), t.dtype, t.group, (("dp", shard),), 10)
                for t in agent.schema.tensors
            )
            agent.schema = msgspec.structs.replace(agent.schema, digest=f"shard {shard}", tensors=tensors)

    def send(self, values: np.ndarray, sampled: bool, now: float) -> None:
        """A batch, a beat where it is time; and take what the daemon has to say."""
        self.agent.batch(values, sampled=sampled and not self.reduced)
        if now >= self._next_beat:
            self._next_beat = now + BEAT
            self.agent.beat(reduced=self.reduced)
        self.listen()

    def listen(self) -> None:
        """Take what the daemon has to say."""
        while (message := self.agent.receive(0)) is not None:
            if isinstance(message, Assign) and self._obeys:
                self.reduced = message.reduced
            elif isinstance(message, Welcome):  # something was lost on the way, or left to us for a while
                self.agent.resend()
        self.agent.messages.clear()  # ten a second, of a thousand ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--shards", type=int, default=1, help="parts of the tensors; ranks / shards replicas")
    parser.add_argument("--all", action="store_true", help="all replicas send everything")
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--rate", type=float, default=10.0, help="steps per second of every rank")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=4.0, help="seconds before it is measured")
    parser.add_argument("--sample-every", type=int, default=10, help="steps between per-tensor records")
    args = parser.parse_args()
    with home_of_its_own() as home:
        daemon = DaemonProcess(home).start()
        try:
            measure(daemon, args)
        finally:
            daemon.kill()


def measure(daemon: DaemonProcess, args: argparse.Namespace) -> None:
    assert daemon.process is not None
    pid = daemon.process.pid
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * args.ranks + 16)
    run = os.urandom(16).hex()
    ranks: list[Rank] = []
    for number in range(args.ranks):
        agent = AgentPeer(
            daemon.address,
            run=run,
            rank=number,
            world_size=args.ranks,
            columns=COLUMNS,
            tensors=args.tensors,
            context=context,
        )
        ranks.append(Rank(agent, number % args.shards, args.shards, not args.all))
        agent.greet()
    burst = max(int(args.rate / 10), 1)  # agents send ten times a second at most
    noise = np.random.default_rng(0)
    began = time.monotonic()
    before, since, sent, sent_before, bytes_before = cpu(pid), began, 0, 0, 0
    warm = False
    while (now := time.monotonic()) - since < (args.seconds if warm else args.warm_up):
        values = noise.normal(2.0, 0.1, size=(burst, len(COLUMNS)))
        for rank in ranks:
            rank.send(values, sent % args.sample_every < burst, now)
        sent += burst
        ahead = began + sent / args.rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        if not warm and time.monotonic() - since >= args.warm_up:
            warm = True
            before, since, sent_before = cpu(pid), time.monotonic(), sent
            bytes_before = sum(rank.agent.sent_bytes for rank in ranks)
    took = time.monotonic() - since
    used = cpu(pid) - before
    steps = sent - sent_before
    kilobytes = (sum(rank.agent.sent_bytes for rank in ranks) - bytes_before) / 1e3
    for rank in ranks:
        rank.agent.wait_acked()
    with daemon.client() as client:
        status = client.status(run)
    full = sum(not rank.reduced for rank in ranks)
    print(
        f"{args.ranks} ranks, {args.shards} parts, {args.tensors} tensors, {steps / took:.2f} steps/s each, "
        f"{full} send all: {100 * used / took:.1f} % of a core, {memory(pid):.0f} MiB, "
        f"{kilobytes / took / 1e3:.2f} MB/s, {kilobytes / steps / args.ranks:.2f} kB a step and rank, "
        f"{status.steps_recorded} of {sent} steps, gaps {status.gaps}"
    )
    for rank in ranks:
        rank.agent.close(linger=0)


def cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    return _used(Path(f"/proc/{pid}/stat"))


def cpu_by_thread(pid: int) -> dict[str, float]:
    """The same of each of its threads, by number."""
    return {task.name: _used(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()}


def _used(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
