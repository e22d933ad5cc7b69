"""How much of one core the daemon takes for N ranks: `python -m tests.benchmarks.ingest --ranks 64`.

Real sockets and a real daemon process; the ranks are simulated by one process that sends batches at the
pace of real ones. Reported: the daemon's CPU seconds per second, its memory, what was lost.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.daemons import DaemonProcess
from tests.peers import AgentPeer

COLUMNS = ("loss", "grad_norm", "step_time", "update_norm", "param_norm", "lr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--rate", type=float, default=10.0, help="steps per second of every rank")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sample-every", type=int, default=10, help="steps between per-tensor records")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            os.environ[variable] = home
        daemon = DaemonProcess(Path(home)).start()
        try:
            measure(daemon, args)
        finally:
            daemon.kill()


def measure(daemon: DaemonProcess, args: argparse.Namespace) -> None:
    assert daemon.process is not None
    pid = daemon.process.pid
    first = AgentPeer(daemon.address, world_size=args.ranks, columns=COLUMNS, tensors=args.tensors)
    agents = [first] + [
        AgentPeer(
            daemon.address,
            run=first.run,
            rank=rank,
            world_size=args.ranks,
            columns=COLUMNS,
            tensors=args.tensors,
        )
        for rank in range(1, args.ranks)
    ]
    for agent in agents:
        agent.greet()
    burst = max(int(args.rate / 10), 1)  # agents send ten times a second at most
    before, began, sent = cpu(pid), time.monotonic(), 0
    noise = np.random.default_rng(0)
    while time.monotonic() - began < args.seconds:
        values = noise.normal(2.0, 0.1, size=(burst, len(COLUMNS)))
        sampled = sent % args.sample_every < burst
        for agent in agents:
            agent.batch(values, sampled=sampled and agent.schema is not None)
            agent.receive(0)
        sent += burst
        ahead = began + sent / args.rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    took = time.monotonic() - began
    used = cpu(pid) - before
    for agent in agents:
        agent.wait_acked()
    with daemon.client() as client:
        status = client.status(first.run)
    print(
        f"{args.ranks} ranks, {args.tensors} tensors, {sent / took:.1f} steps/s each: "
        f"{100 * used / took:.1f} % of a core, {memory(pid):.0f} MiB, "
        f"{status.steps_recorded} of {sent} steps, gaps {status.gaps}"
    )
    for agent in agents:
        agent.close(linger=0)


def cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
