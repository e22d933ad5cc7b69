"""What it costs a step to be commandable while nobody commands.

    python -m tests.benchmarks.commandable [--rounds N] [--steps N]

Two ranks of one gloo group, each with an optimizer of one small tensor, a daemon beside them. Each rank
attaches in turn to observe only (`allow=()`) and to be commanded (armed, the thread for votes running),
round after round. The figure is the median over rounds of the difference in CPU time of the whole
process, its threads included, divided by the steps. Nothing is commanded.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

import optwatch
from tests.daemons import DaemonProcess
from tests.distributed.ranks import on_ranks

RANKS = 2
GUARD = 30.0
"""Seconds after which joining the job's store hangs."""


def cost(rank: int, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """CPU microseconds per step of each round: observing only, and armed."""
    seen: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for armed in (0, 1):
            parameter = torch.nn.Parameter(torch.zeros(16))
            parameter.grad = torch.zeros(16)
            optimizer = torch.optim.SGD([parameter], lr=0.1)
            with optwatch.attach(optimizer, name="idle", allow=("restart",) if armed else ()) as watch:
                end = time.monotonic() + GUARD
                while (watch._agent.control.state == "armed") != bool(
                    armed
                ) or not watch._agent.link.welcomed:
                    assert time.monotonic() < end, watch._agent.control.state
                    time.sleep(0.01)
                began = time.process_time()
                for _ in range(steps):
                    optimizer.step()
                seen[armed].append(1e6 * (time.process_time() - began) / steps)
    return seen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=5_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home:
        for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            os.environ[variable] = home
        daemon = DaemonProcess(Path(home) / "daemon").start()
        try:
            found = on_ranks(RANKS, cost, Path(home), given.rounds, given.steps)
        finally:
            daemon.stop()
    print("rank  observing  armed  being commandable   (CPU µs a step, medians of rounds; quartiles)")
    for rank, (observing, armed) in enumerate(found):
        extra = [b - a for a, b in zip(observing, armed, strict=True)]
        low, middle, high = statistics.quantiles(extra, n=4)
        print(
            f"{rank:4}  {statistics.median(observing):9.1f}  {statistics.median(armed):5.1f}"
            f"  {middle:+.2f} ({low:+.2f} … {high:+.2f})"
        )


if __name__ == "__main__":
    main()
