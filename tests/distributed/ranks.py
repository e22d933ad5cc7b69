"""Run a function on several gloo ranks, each a process, and collect what they return."""

import datetime
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

GUARD = 60


def on_ranks(n: int, function: Callable[..., Any], directory: Path, *args: Any) -> list[Any]:
    """Call `function(rank, *args)` on `n` ranks of one gloo process group; the results by rank.

    `function` and what it returns must be picklable. Fails if a rank raises or does not come back.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "tests.distributed.chaos"])
    pipes = [context.Pipe(duplex=False) for _ in range(n)]
    processes = [
        context.Process(target=_rank, args=(rank, n, directory / "rendezvous", function, args, theirs))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        results = []
        for rank, (ours, _) in enumerate(pipes):
            assert ours.poll(GUARD * n), f"rank {rank} does not answer"
            result = ours.recv()
            assert not isinstance(result, BaseException), f"rank {rank}: {result!r}"
            results.append(result)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()
        for pair in pipes:
            for end in pair:
                end.close()


def _rank(
    rank: int, n: int, rendezvous: Path, function: Callable[..., Any], args: tuple[Any, ...], pipe: Connection
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(rendezvous), n),
        rank=rank,
        world_size=n,
        timeout=datetime.timedelta(seconds=GUARD * n),
    )
    try:
        pipe.send(function(rank, *args))
        dist.barrier()
    except Exception as error:  # the parent shows it
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        raise
    finally:
        dist.destroy_process_group()
