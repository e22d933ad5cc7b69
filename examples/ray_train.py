"""The classifier of handwritten digits under Ray Train: `python examples/ray_train.py --workers 2`.

Ray starts the workers and their process group; each attaches, and to optwatch they are the ranks of one run.
Needs `pip install "ray[train]"`. Workers on other hosts need $OPTWATCH_DAEMON and the keys (many_ranks.md):
put them into the workers' environment, as below.
"""

import argparse
import os
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from sklearn.datasets import load_digits
from torch import nn

import optwatch

PASSED_ON = ("OPTWATCH_DAEMON", "OPTWATCH_DAEMON_KEY", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")


def train(config: dict[str, Any]) -> None:
    """What every worker does."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)[rank::world_size].to(device)
    y = torch.tensor(digits.target)[rank::world_size].to(device)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = ray.train.torch.prepare_model(net)  # wraps it in DistributedDataParallel
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with optwatch.attach(optimizer, model=model, name="digits-ray", config=config):  # the one line
        order = torch.Generator().manual_seed(rank)
        for step in range(1, config["steps"] + 1):
            batch = torch.randint(len(x), (64,), generator=order).to(device)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            if step % 500 == 0:
                ray.train.report({"loss": loss.item(), "step": step})


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=5_000)
    given = arguments.parse_args()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    ray.init(runtime_env={"env_vars": environment})
    ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"steps": given.steps},
        scaling_config=ray.train.ScalingConfig(num_workers=given.workers, use_gpu=torch.cuda.is_available()),
    ).fit()
