"""A training that knows nothing of optwatch: DDP over gloo, a fixed number of steps, no randomness.

Every rank writes its losses, a digest of its parameters' bits and where the time of each step went to
`DIRECTORY/plain-R.json`.
"""

import argparse
import ctypes
import hashlib
import json
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("directory", type=Path)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--step-time", type=float, default=0.0)
    given = options.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive a launcher that was killed
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, laps = [], []
    for step in range(given.steps):
        before = clocks()
        inputs = torch.randn(8, 8, generator=torch.Generator().manual_seed(2 * step + rank))
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        laps.append([before[0], *(now - then for now, then in zip(clocks(), before, strict=True))])
        time.sleep(given.step_time)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    result = {"losses": losses, "laps": laps, "bits": digest}
    (given.directory / f"plain-{rank}.json").write_text(json.dumps(result))
    time.sleep(0.2)
    dist.destroy_process_group()


def clocks() -> tuple[float, float, float]:
    """Seconds: the time, this thread's use of a CPU, and how long it was ready to run and had none."""
    waited = Path("/proc/thread-self/schedstat").read_text().split()[1]
    return time.monotonic(), time.thread_time(), int(waited) / 1e9


if __name__ == "__main__":
    main()
