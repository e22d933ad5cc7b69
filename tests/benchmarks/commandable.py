"""What it costs a step to be commandable while nobody commands.

    python -m tests.benchmarks.commandable [--rounds N] [--steps N]

Two ranks of one gloo group, a daemon beside them. Each rank has three optimizers of one small tensor:
one that nobody watches, one attached to observe only (`allow=()`), and one that is armed, with the thread
for votes waiting. They step in turn, a few dozen steps at a time. CPU time of the training thread per
step; the figure is the median over rounds of armed less observing. The thread for votes is counted apart:
it has to sleep. Nothing is commanded. About ten seconds of CPU for each rank.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import optwatch
from tests.daemons import DaemonProcess
from tests.distributed.ranks import on_ranks

RANKS = 2
GUARD = 30.0
"""Seconds after which joining the job's store hangs."""


def cost(rank: int, rounds: int, steps: int) -> tuple[list[list[float]], float]:
    """CPU microseconds per step of each round, by optimizer; those of the thread for votes in all."""
    optimizers = []
    for _ in range(3):
        parameter = torch.nn.Parameter(torch.zeros(16))
        parameter.grad = torch.zeros(16)
        optimizers.append(torch.optim.SGD([parameter], lr=0.1))
    _, observed, commanded = optimizers
    with (
        optwatch.attach(observed, name="observing", allow=()),
        optwatch.attach(commanded, name="armed", allow=("restart",)) as watch,
    ):
        agent: Any = watch._agent
        end = time.monotonic() + GUARD
        while agent.control.state != "armed" or not agent.link.welcomed:
            assert time.monotonic() < end, agent.control.state
            time.sleep(0.01)
        seen: list[list[float]] = [[], [], []]
        votes = _cpu(agent.membership.arbiter._thread.native_id)
        for number in range(rounds):
            if rank == 0 and number % max(1, rounds // 10) == 0:
                print(f"round {number} of {rounds}", flush=True)
            for optimizer, found in zip(optimizers, seen, strict=True):
                began = time.thread_time()
                for _ in range(steps):
                    optimizer.step()
                found.append(1e6 * (time.thread_time() - began) / steps)
        votes = _cpu(agent.membership.arbiter._thread.native_id) - votes
    return seen, 1e6 * votes


def _cpu(thread: int) -> float:
    """Seconds of CPU that a thread of this process has had."""
    fields = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=int, default=800)
    options.add_argument("--steps", type=int, default=50)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            os.environ[variable] = home
        daemon = DaemonProcess(Path(home) / "daemon").start()
        print(f"{RANKS} ranks start, each imports torch", flush=True)
        try:
            found = on_ranks(RANKS, cost, Path(home), given.rounds, given.steps)
        finally:
            daemon.stop()
    print("CPU µs a step, medians of rounds")
    print("rank  unwatched  observing  armed  armed less observing (quartiles)  thread for votes, in all")
    for rank, (seen, votes) in enumerate(found):
        unwatched, observing, armed = map(statistics.median, seen)
        extra = [b - a for a, b in zip(seen[1], seen[2], strict=True)]
        low, middle, high = statistics.quantiles(extra, n=4)
        print(
            f"{rank:4}  {unwatched:9.1f}  {observing:9.1f}  {armed:5.1f}"
            f"  {middle:+20.2f} ({low:+.2f} … {high:+.2f})  {votes:14.0f} µs"
        )


if __name__ == "__main__":
    main()
