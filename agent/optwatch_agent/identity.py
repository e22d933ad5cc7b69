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

from optwatch.wire.limits import MAX_NAME

_runs: dict[str, str] = {}
"""Runs of this process by name, so that attaching again continues one."""
_live: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Identity:
    """One attachment. `session` is new each time; `run` is shared by the ranks of a job."""

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


def identify(name: str | None) -> Identity:
    """The identity of an attachment that begins now."""
    rank, world_size = place()
    name = (name or default_name())[:MAX_NAME]
    job = job_id()
    return Identity(
        session=uuid.uuid4().hex,
        run=_run(name, job, world_size),
        name=name,
        incarnation=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        job=job,
        rank=rank,
        world_size=world_size,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=time.time(),
    )


def leave(run: str) -> None:
    """The attachment is over: the next one of the same name continues the run."""
    with _lock:
        _live.discard(run)


def place() -> tuple[int, int]:
    """(rank, world_size): of the process group, else of the launcher, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, world_size) if 0 <= rank < world_size else (0, 1)


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


def _run(name: str, job: str, world_size: int) -> str:
    """One id for all ranks of a job, of which each can work it out alone; else one of this process."""
    if world_size > 1:
        meeting = (os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", ""))
        return uuid.uuid5(uuid.NAMESPACE_OID, "\0".join((name, job or ":".join(meeting)))).hex
    with _lock:
        run = _runs.get(name)
        if run is None or run in _live:
            run = uuid.uuid4().hex
            _runs[name] = run
        _live.add(run)
        return run
