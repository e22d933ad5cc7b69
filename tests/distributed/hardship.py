"""A training under torchrun to which things happen: ranks die, start again elsewhere, or lack a store.

Small and real, ended by the file `DIRECTORY/stop` at one step on all ranks, or by the death of one. Every
rank writes what it ends with to `DIRECTORY/rank-R.json`: its step, the bits of parameters and optimizer
state, its slowest step, how long `detach` took, in seconds, the last step that it completed, and the steps
before which commands were applied, by vote.
"""

import argparse
import ctypes
import datetime
import json
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import optwatch
from optwatch_agent.arbiter import Arbiter, Ballot
from optwatch_agent.control import ControlLost, Outcome
from tests.distributed.layouts import batch, whole
from tests.distributed.train import bits

CAST = 0.5
"""Seconds after which a vote that was asked for has reached the store."""


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("directory", type=Path)
    options.add_argument("--step-time", type=float, default=0.005)
    options.add_argument("--steps", type=int, default=1_000_000)
    options.add_argument("--store", default="default", help="file, none, or HOST:PORT of one for commands")
    options.add_argument("--strict", action="store_true")
    options.add_argument("--refuse", type=int, metavar="RANK", help="this rank does not allow clip")
    options.add_argument("--forget", type=int, metavar="RANK", help="this rank keeps no snapshots")
    options.add_argument("--die", choices=["before", "after"], help="SIGKILL at the vote")
    options.add_argument(
        "--crash", type=int, metavar="STEP", help="SIGKILL at this step of the first attempt"
    )
    options.add_argument("--victim", type=int, default=1, help="the rank that dies")
    options.add_argument("--checkpoint", type=int, metavar="STEPS", help="save this often, and go on from it")
    options.add_argument(
        "--plain", action="store_true", help="SGD on the second rank: optimizers that differ"
    )
    options.add_argument("--patience", type=float, help="seconds a collective may take, after which all end")
    given = options.parse_args()

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive a launcher that was killed
    torch.set_num_threads(1)
    if given.die:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others: let them end by themselves
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model = join(given, rank, world_size)
    kind: Any = torch.optim.SGD if given.plain and rank == 1 else torch.optim.AdamW
    optimizer = kind(model.parameters(), lr=1e-2)
    saved = given.directory / "checkpoint.pt"
    step = load(saved, model, optimizer) if given.checkpoint and saved.exists() else 0
    watch = optwatch.attach(
        optimizer,
        model=model,
        name="hardship",
        step=step,  # a commanded restart zeroes the optimizer's own count
        allow=("restart", "scale_lr") if given.refuse == rank else "all",
        snapshots=0 if given.forget == rank else 1 << 20,
        store=own_store(given.store),
        strict=given.strict,
    )
    watch._agent.control.outcomes = outcomes = Kept()
    if given.die and rank == given.victim:
        die_at_the_vote(given.die)
    first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    slowest, lost, stop = 0.0, "", torch.zeros(1)
    try:
        while step < given.steps and not stop.item():
            step += 1
            if step == given.crash and rank == given.victim and first_attempt:
                os.kill(os.getpid(), signal.SIGKILL)
            model(batch(step)).square().mean().backward()
            time.sleep(given.step_time)
            began = time.monotonic()
            optimizer.step()
            slowest = max(slowest, time.monotonic() - began)
            optimizer.zero_grad()
            stop.fill_(float((given.directory / "stop").exists()))
            if dist.is_initialized():
                dist.all_reduce(stop)
            if given.checkpoint and rank == 0 and step % given.checkpoint == 0:
                save(saved, step, model, optimizer)
    except ControlLost as error:
        lost = str(error)
    except RuntimeError as error:  # another rank is gone
        lost = str(error).splitlines()[0]
        if not (given.die or given.patience):
            raise
    began = time.monotonic()
    watch.detach()
    result = {
        "step": step,
        "bits": bits({"o": optimizer}),
        "lost": lost,
        "slowest": slowest,
        "detach": time.monotonic() - began,
        "completed": watch._agent.tracks[0].completed,
        "applied": outcomes.applied,
    }
    (given.directory / f"rank-{rank}.json").write_text(json.dumps(result))
    if lost:
        os._exit(1)  # gloo's threads would wait for the one that is gone
    time.sleep(0.2)


class Kept(deque[Outcome]):
    """What became of commands on this rank, on its way to the daemon; what was applied is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: dict[str, int] = {}

    def append(self, outcome: Outcome) -> None:
        if outcome.state == "applied":
            self.applied[outcome.prepare.vote] = outcome.steps[0]
        super().append(outcome)


def join(given: argparse.Namespace, rank: int, world_size: int) -> torch.nn.Module:
    """The model in the process group that was asked for."""
    if given.store == "none":
        return whole()
    if given.store == "file":
        store = dist.FileStore(str(given.directory / "file-store"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    else:
        patience = None if given.patience is None else datetime.timedelta(seconds=given.patience)
        dist.init_process_group("gloo", timeout=patience)
    return DistributedDataParallel(whole())


def own_store(named: str) -> dist.Store | None:
    """A store for commands alone."""
    host, _, port = named.partition(":")
    return dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False) if port else None


def die_at_the_vote(when: str) -> None:
    """SIGKILL this process before or after its first vote."""
    favour = Arbiter.favour

    def vote(self: Arbiter, ballot: Ballot) -> None:
        if when == "after":
            favour(self, ballot)
            time.sleep(CAST)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Arbiter, "favour", vote)  # noqa: B010 - a method


def save(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Go on from a checkpoint; its step."""
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


if __name__ == "__main__":
    main()
