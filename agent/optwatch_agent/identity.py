"""Who this process is: its run, its place in the job, its session."""

import os
import platform
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from optwatch.wire.limits import fit

_runs: dict[tuple[str, int], str] = {}
"""Runs of this process by name and ordinal, so that attaching again continues one."""
_ELASTIC = 1_000
"""Restarts by torchrun that are told apart within one start by SLURM."""
_live: dict[str, set[int]] = {}
"""Ordinals in use, by name."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Identity:
    """One attachment. `session` is new each time; `run` is shared by the ranks of a job.

    `ordinal` tells attachments of one name apart that this process has at the same time.
    """

    session: str
    run: str
    name: str
    incarnation: int
    job: str
    rank: int
    world_size: int
    host: str
    pid: int
    started: float
    ordinal: int = 0


def identify(name: str | None) -> Identity:
    """The identity of an attachment that begins now."""
    rank, world_size = place()
    name, job = fit(name or default_name()), fit(job_id())
    run, ordinal = _run(name, job)
    return Identity(
        session=uuid.uuid4().hex,
        run=run,
        name=name,
        incarnation=_restarts(),
        job=job,
        rank=rank,
        world_size=world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=time.time(),
        ordinal=ordinal,
    )


def leave(who: Identity) -> None:
    """The attachment is over: the next one of the same name continues the run."""
    with _lock:
        _live.get(who.name, set()).discard(who.ordinal)
        _runs[who.name, who.ordinal] = who.run


def place() -> tuple[int, int]:
    """(rank, world_size): of the process group, else of the launcher, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


def _restarts() -> int:
    """How often the launchers have started the job anew: a number that grows with each time.

    A torchrun that SLURM starts again counts from 0.
    """
    elastic, slurm = (
        int(count) if (count := os.environ.get(variable, "")).isdecimal() else 0
        for variable in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )
    return min(slurm, 1_000_000) * _ELASTIC + min(elastic, _ELASTIC - 1)


def job_id() -> str:
    """What names the job over its restarts, "" where nothing does."""
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if elastic and elastic != "none":  # "none" is what torchrun calls a job that was given no id
        return elastic
    return os.environ.get("SLURM_JOB_ID", "")


def default_name() -> str:
    """The script's name without its suffix."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None) or sys.argv[0]
    return Path(path).stem or "run"


def versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "python": platform.python_version()}


def _run(name: str, job: str) -> tuple[str, int]:
    """The id and the ordinal of an attachment. Where the job has an id over its restarts, so has its run."""
    with _lock:
        used = _live.setdefault(name, set())
        ordinal = next(i for i in range(len(used) + 1) if i not in used)
        used.add(ordinal)
        if job:
            return uuid.uuid5(uuid.NAMESPACE_OID, f"{job}\0{name}\0{ordinal}").hex, ordinal
        return _runs.setdefault((name, ordinal), uuid.uuid4().hex), ordinal
