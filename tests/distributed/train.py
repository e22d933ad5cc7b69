"""A training that the tests run under torchrun: small, real, and ended by a file, at one step on all ranks.

It writes what every rank ends with, its step and a digest of the bits of parameters and optimizer state,
to `DIRECTORY/rank-R.json`; with `--journal` also what was commanded of it and, now and then, that digest,
to `DIRECTORY/journal-R`, a line each as it happens.
"""

import argparse
import ctypes
import hashlib
import json
import os
import random
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

import optwatch
from optwatch_agent.attach import innermost
from optwatch_agent.control import Outcome
from optwatch_agent.shards import is_sharded, shard_key
from optwatch_agent.tensors import local
from tests.distributed.layouts import LAYOUTS, WIDTH, batch
from tests.distributed.layouts import optimizer as optimizer_of
from tests.histograms import counted, sparse

LR = 1e-2


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("directory", type=Path)
    options.add_argument("--layout", default="ddp", choices=LAYOUTS)
    options.add_argument("--width", type=int, default=WIDTH)
    options.add_argument("--double", action="store_true", help="train in float64")
    options.add_argument("--step-time", type=float, default=0.005)
    options.add_argument("--attach", default="after", choices=["after", "before", "rank0", "never"])
    options.add_argument("--optimizers", type=int, default=1)
    options.add_argument("--leave", action="store_true", help="end without destroy_process_group")
    options.add_argument("--detach", action="store_true", help="also detach before the end")
    options.add_argument("--steps", type=int, default=1_000_000)
    options.add_argument("--truth", action="store_true", help="write what whole tensors say, each step")
    options.add_argument(
        "--flip", type=int, help="the rank of which a bit is flipped once DIRECTORY/flip is there"
    )
    options.add_argument("--budget", type=float, default=1.0)
    options.add_argument("--period", type=int, default=2, help="the second optimizer steps this seldom")
    options.add_argument("--groups", type=int, default=1, help="param_groups of each optimizer")
    options.add_argument("--jitter", type=int, metavar="SEED", help="steps of random length, random data")
    options.add_argument("--protocol", default="vote", help="which way to act together (see mutants)")
    options.add_argument("--journal", type=int, metavar="STEPS", help="write the bits this often")
    options.add_argument(
        "--slow", type=int, help="the rank that loads data 20 ms longer once DIRECTORY/slow is there"
    )
    options.add_argument(
        "--stuck", type=int, help="the rank whose data does not come while DIRECTORY/stuck is there"
    )
    options.add_argument("--comm-hook", action="store_true", help="attach with comm_hook=True")
    options.add_argument("--snapshots", type=int, default=0, help="bytes for snapshots; allows all actions")
    options.add_argument("--guard", action="append", default=[], help="a reflex within the step")
    options.add_argument("--obey", action="store_true", help="allow `stop`, and end at it without a word")
    given = options.parse_args()

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive a launcher that was killed
    torch.set_num_threads(1)
    if given.double:
        torch.set_default_dtype(torch.float64)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if given.attach != "before":
        dist.init_process_group("gloo")
    model = None
    if given.attach == "before":
        plain = LAYOUTS["plain"](1, given.width)
        parameters = list(plain.parameters())
    else:
        model = LAYOUTS[given.layout](ranks, given.width)
        parameters = list(model.parameters())
    halves = [parameters] if given.optimizers == 1 else [parameters[::2], parameters[1::2]]
    optimizers = {
        f"o{i}": optimizer_of(given.layout, torch.optim.AdamW, grouped(half, given.groups), lr=LR)
        for i, half in enumerate(halves)
    }
    use_protocol(given.protocol)
    watch = None
    if given.attach in ("after", "before") or (given.attach == "rank0" and rank == 0):
        watch = optwatch.attach(
            optimizers,
            model=model,
            name="ranks",
            budget=given.budget,
            comm_hook=given.comm_hook,
            snapshots=given.snapshots,
            guard=given.guard,
            **({"allow": "all"} if given.obey or given.snapshots else {}),
        )
    if given.attach == "before":
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(plain)
    assert model is not None
    journal = None
    if given.journal is not None:
        assert watch is not None
        journal = (given.directory / f"journal-{rank}").open("w", buffering=1)
        watch._agent.control.outcomes = Journal(journal)
    dice = None if given.jitter is None else random.Random(given.jitter * 1_000 + rank)

    data = iter(DataLoader(Batches(rank, ranks, given), batch_size=None))
    stop = torch.zeros(1)
    truth: dict[int, Any] = {}
    step = 0
    while step < given.steps and not stop.item():
        step += 1
        loss = model(next(data)).square().mean()
        loss.backward()
        time.sleep(given.step_time if dice is None else dice.expovariate(1 / given.step_time))
        for i, optimizer in enumerate(optimizers.values()):
            if step % (i * given.period or 1) == 0:
                optimizer.step()
                if given.truth:
                    truth[step] = of_whole_tensors(model)
                optimizer.zero_grad()
        if given.obey and watch is not None and watch.should_stop:
            break  # a rank that did so a step earlier would leave the others waiting in the next one
        if given.flip == rank and (given.directory / "flip").exists():
            (given.directory / "flip").unlink()
            flip(next(iter(optimizers.values())))
        if watch is not None and (given.directory / f"detach-{rank}").exists():
            watch.detach()
            watch = None
        stop.fill_(float((given.directory / "stop").exists()))
        dist.all_reduce(stop)
        if journal is not None and step % given.journal == 0:
            journal.write(f"bits {step} {bits(optimizers)}\n")
    if watch is not None and given.detach:
        began = time.monotonic()
        watch.detach()
        print(f"detached in {time.monotonic() - began:.2f} s", flush=True)
    result = {
        "step": step,
        "bits": bits(optimizers),
        "shards": shards(model, optimizers),
        "parameters": {name: values.tolist() for name, values in whole_parameters(model).items()},
    }
    (given.directory / f"rank-{rank}.json").write_text(json.dumps(result))
    if given.truth and rank == 0:
        (given.directory / "truth.json").write_text(json.dumps(truth))
    # Gloo's thread drops its last tensor under the GIL; torch deadlocks if the group is freed meanwhile.
    time.sleep(0.2)
    if not given.leave:
        dist.destroy_process_group()


class Batches(IterableDataset[torch.Tensor]):
    """The batches of a rank, from a source that may be slow or stuck."""

    def __init__(self, rank: int, ranks: int, given: argparse.Namespace) -> None:
        self.rank = rank
        self.ranks = ranks
        self.given = given

    def __iter__(self) -> Iterator[torch.Tensor]:
        directory, step, slow = self.given.directory, 0, False
        while True:
            step += 1
            if self.given.slow == self.rank and not slow and (directory / "slow").exists():
                slow = True
                (directory / "slowed").write_text(str(step))
            if slow:
                time.sleep(0.02)
            while self.given.stuck == self.rank and (directory / "stuck").exists():
                time.sleep(0.1)
            # With jitter each rank has data of its own.
            number = step if self.given.jitter is None else step * self.ranks + self.rank
            data = batch(number, self.given.width)
            if self.rank == 0 and (directory / "spoil").exists():
                (directory / "spoil").unlink()
                data[0, 0] = torch.nan
            yield data


def flip(optimizer: torch.optim.Optimizer) -> None:
    """Flip one bit of the second moment of the first parameter, as a memory that fails would."""
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["exp_avg_sq"].view(-1).view(torch.int32)[3] ^= 1 << 20


def grouped(parameters: list[torch.nn.Parameter], groups: int) -> list[Any]:
    """Parameters in so many param_groups, each with an lr of its own."""
    if groups == 1:
        return parameters
    return [{"params": parameters[i::groups], "lr": LR / (i + 1)} for i in range(groups)]


def use_protocol(name: str) -> None:
    """Put another protocol in the place of the agent's."""
    from optwatch_agent import agent
    from tests.distributed.mutants import CONTROLS

    setattr(agent, "Control", CONTROLS[name])  # noqa: B010 - it is not exported


class Journal(deque[Outcome]):
    """What became of commands on this rank, on its way to the daemon and written down."""

    def __init__(self, lines: TextIO) -> None:
        super().__init__()
        self._lines = lines

    def append(self, outcome: Outcome) -> None:
        if outcome.state == "applied":
            steps = ",".join(map(str, outcome.steps))
            self._lines.write(f"applied {outcome.prepare.command}/{outcome.prepare.vote} {steps}\n")
        super().append(outcome)


def of_whole_tensors(model: torch.nn.Module) -> dict[str, Any]:
    """Norms and statistics from full tensors, in float64. A collective."""
    tensors, squares = {}, {"grad_norm": 0.0, "param_norm": 0.0}
    for name, parameter in model.named_parameters():
        full = [
            (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().double()
            for x in (parameter, parameter.grad)
        ]
        squares["param_norm"] += full[0].square().sum().item()
        squares["grad_norm"] += full[1].square().sum().item()
        tensors[name.removeprefix("module.")] = {
            "stats": {
                "param_rms": full[0].square().mean().sqrt().item(),
                "param_max": full[0].abs().max().item(),
                "grad_rms": full[1].square().mean().sqrt().item(),
                "grad_max": full[1].abs().max().item(),
            },
            "counts": {
                "grad_zeros": int((full[1] == 0).sum()),
                "grad_nonfinite": int((~full[1].isfinite()).sum()),
            },
            "histogram": sparse(counted(full[1].numpy())),
        }
    return {norm: value**0.5 for norm, value in squares.items()} | {"tensors": tensors}


def whole_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A collective."""
    return {
        name.removeprefix("module."): (p.full_tensor() if is_sharded(p) else p).detach()
        for name, p in model.named_parameters()
    }


def shards(model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, str]:
    """A digest of every parameter, and of its state where this rank keeps it, by name and shard_key."""
    states = {id(p): state for o in optimizers.values() for p, state in innermost(o).state.items()}
    found = {}
    for name, parameter in model.named_parameters():
        state = states.get(id(parameter), {})
        tensors = {"": parameter.detach(), **{key: state[key] for key in sorted(state)}}
        for key, tensor in tensors.items():
            data = local(tensor).contiguous().numpy().tobytes()
            found[f"{name} {key} {shard_key(parameter)}"] = hashlib.sha256(data).hexdigest()
    return found


def bits(optimizers: dict[str, torch.optim.Optimizer]) -> str:
    """A digest of all parameters and optimizer state that this rank holds, bit by bit."""
    digest = hashlib.sha256()
    for optimizer in map(innermost, optimizers.values()):
        for group in optimizer.param_groups:
            digest.update(repr(group["lr"]).encode())
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                for tensor in (parameter.detach(), *(state[key] for key in sorted(state))):
                    part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                    digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
