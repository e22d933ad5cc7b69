"""A daemon and an agent for an hour: `python -m tests.soak --minutes 60`.

A real training with every tensor watched, commands now and then, viewers that come and go. Printed
each minute: memory, open files and threads of both processes; in the end how much they grew from the second
quarter of the time to the last one. Exit 1 where files or threads grew, or memory by more than `--slack` MiB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from optwatch.client import DaemonError
from tests.daemons import DaemonProcess, home_of_its_own

TRAINING = """
import sys, time, torch, optwatch
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
watch = optwatch.attach(optimizer, model=model, name="soak")
target = torch.nn.Linear(64, 10)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    x = torch.randn(64, 64)
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), target(x).detach()).backward()
    optimizer.step()
    time.sleep(0.01)
watch.detach()
"""


class Sample(NamedTuple):
    """Of one process. MiB; counts."""

    memory: float
    files: int
    threads: int


def sample(pid: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
    )


def growth(samples: list[Sample]) -> Sample:
    """From the second quarter to the last one, by their medians."""
    quarter = max(len(samples) // 4, 1)
    before, after = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    memory, files, threads = (
        statistics.median(each[at] for each in after) - statistics.median(each[at] for each in before)
        for at in range(3)
    )
    return Sample(memory, round(files), round(threads))


def visit(daemon: DaemonProcess, minute: float) -> None:
    """What people do: look, follow for a moment, and command."""
    try:
        with daemon.client() as client:
            client.view("soak")
            client.series("soak", points=500)
            client.tensors("soak")
            with client.follow("soak") as follower:
                follower.receive(1.0)
            if int(minute * 6) % 6 == 0:
                client.act("soak", "scale_lr", {"reset": True})
    except DaemonError as error:
        print(f"{minute:6.1f} min  {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--slack", type=float, default=16.0, help="MiB that are no growth")
    args = parser.parse_args()
    with home_of_its_own() as home:
        daemon = DaemonProcess(home).start()
        assert daemon.process is not None
        training = subprocess.Popen([sys.executable, "-c", TRAINING, str(60 * args.minutes + 30)])
        seen: dict[str, list[Sample]] = {"daemon": [], "training": []}
        pids = {"daemon": daemon.process.pid, "training": training.pid}
        began, next_print = time.monotonic(), 0.0
        time.sleep(10)  # until the training steps
        while (minute := (time.monotonic() - began) / 60) < args.minutes:
            visit(daemon, minute)
            for name, pid in pids.items():
                seen[name].append(sample(pid))
            if minute >= next_print:
                next_print += min(1.0, args.minutes / 10)
                print(
                    f"{minute:6.1f} min  "
                    + "   ".join(
                        f"{name}: {s[-1].memory:7.1f} MiB {s[-1].files:4} files {s[-1].threads:3} threads"
                        for name, s in seen.items()
                    ),
                    flush=True,
                )
            time.sleep(2)
        with daemon.client() as client:
            status = client.status("soak")
        training.kill()
        training.wait()
        daemon.stop()
    print(f"{status.steps_recorded} steps recorded, gaps {status.gaps}")
    grown = False
    for name, samples in seen.items():
        more = growth(samples)
        print(f"{name}: {more.memory:+.1f} MiB, {more.files:+d} files, {more.threads:+d} threads")
        grown = grown or more.files > 0 or more.threads > 0 or more.memory > args.slack
    raise SystemExit(int(grown))


if __name__ == "__main__":
    main()
