"""A small classifier of handwritten digits whose parameters are spread over the processes (FSDP2).

    torchrun --nproc-per-node 2 examples/fsdp2.py

Norms and statistics in `optwatch tui` are those of the whole tensors. The norm of the gradients that the
optimizer sees is no rank's own; a `clip` from there works with the true one.
"""

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import optwatch

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--steps", type=int, default=10_000)
steps = arguments.parse_args().steps

torch.set_num_threads(1)
kind = "cuda" if torch.cuda.is_available() else "cpu"
dist.init_process_group("nccl" if kind == "cuda" else "gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
if kind == "cuda":
    torch.cuda.set_device(device)

digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
x, y = x[rank::world_size].to(device), y[rank::world_size].to(device)  # every rank its own digits

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
model.to(device)
mesh = init_device_mesh(kind, (world_size,), mesh_dim_names=("dp",))
for layer in model:
    if isinstance(layer, nn.Linear):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # after fully_shard
optwatch.attach(optimizer, model=model, name="digits-fsdp2")  # the one line, on every rank

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
