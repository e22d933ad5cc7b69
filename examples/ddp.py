"""A small classifier of handwritten digits, trained on several processes with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/ddp.py

Watch it with `optwatch tui` in a second terminal; a command there is applied at the same step on every rank.
An unchanged script would be watched with `torchrun --no-python --nproc-per-node 2 optwatch run -- ddp.py`.
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import optwatch

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--steps", type=int, default=20_000)
steps = arguments.parse_args().steps

torch.set_num_threads(1)
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
x, y = x[rank::world_size].to(device), y[rank::world_size].to(device)  # every rank its own digits

torch.manual_seed(0)  # the same parameters to begin with
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
model = DistributedDataParallel(model.to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
optwatch.attach(optimizer, model=model, name="digits-ddp")  # the one line, on every rank

order = torch.Generator().manual_seed(rank)
for step in range(1, steps + 1):
    batch = torch.randint(len(x), (64,), generator=order).to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
    loss.backward()
    optimizer.step()
    if step % 100 == 0 and rank == 0:
        print(f"step {step}: loss {loss.item():.4f}")
dist.destroy_process_group()
