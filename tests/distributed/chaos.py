"""Ranks under bad conditions: processes that step together, take commands late or not at all, and die.

A run gives each rank's journal: which command it applied before which step, and its parameter at the
end. `disagreements` holds them against each other. Besides the vote there are two protocols that look
right and are not (`on_receipt`, `daemon_decides`), to show that the same conditions find them out.
"""

import math
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from optwatch_agent.arbiter import Arbiter, Ballot
from optwatch_agent.jobstore import connect
from optwatch_agent.vote import Verdict
from tests.distributed.link import Weather

DEAD = UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Conditions(Weather):
    """What the ranks have to bear, beside the weather. Times in seconds."""

    ranks: int = 4
    commands: int = 100
    store: str = "tcp"
    step_time: float = 0.002
    every: float = 0.02
    """From one command to the next, on average."""
    margin: int = 12
    """Steps from the proposal to the command's step."""
    kills: int = 0
    """Ranks killed at random moments."""


@dataclass(frozen=True)
class Proposal:
    number: int
    vote: str
    n: int
    step: int
    factor: float


@dataclass
class Journal:
    """What a rank did: (command, step) in order, and its parameter in the end, None if it was killed."""

    applied: list[tuple[int, int]] = field(default_factory=list)
    parameter: float | None = None
    lost: str = ""


class Scheme(Protocol):
    """How a rank comes to know what to apply."""

    def take(self, proposal: Any) -> None:
        """A message from the proposer, in the agent's thread."""

    def begin(self, step: int) -> list[Proposal]:
        """What to apply before this step, in the training thread."""

    def close(self) -> str: ...


class Voting:
    """The protocol of the agent: pending first, then the vote; the verdict at the step."""

    def __init__(self, store: dist.Store, reply: Connection) -> None:
        self._arbiter = Arbiter(lambda: connect(store))
        self._pending: list[tuple[Proposal, Ballot]] = []
        self._lock = threading.Lock()
        self._step = 0

    def take(self, proposal: Proposal) -> None:
        ballot = Ballot(proposal.vote, proposal.n)
        with self._lock:
            in_time = self._step < proposal.step
            if in_time:
                self._pending.append((proposal, ballot))
        (self._arbiter.favour if in_time else self._arbiter.oppose)(ballot)

    def begin(self, step: int) -> list[Proposal]:
        with self._lock:
            self._step = step
            due = [entry for entry in self._pending if entry[0].step <= step]
            self._pending = [entry for entry in self._pending if entry[0].step > step]
        due.sort(key=lambda entry: (entry[0].step, entry[0].number))
        return [proposal for proposal, ballot in due if self._arbiter.settle(ballot) is Verdict.COMMIT]

    def close(self) -> str:
        self._arbiter.close(5)
        return self._arbiter.lost


class OnReceipt:
    """A mutant: what has arrived is applied at the next step."""

    def __init__(self, store: dist.Store, reply: Connection) -> None:
        self._arrived: list[Proposal] = []
        self._lock = threading.Lock()

    def take(self, proposal: Proposal) -> None:
        with self._lock:
            self._arrived.append(proposal)

    def begin(self, step: int) -> list[Proposal]:
        with self._lock:
            due, self._arrived = self._arrived, []
        return due

    def close(self) -> str:
        return ""


class DaemonDecides:
    """A mutant: two phases over the daemon's messages. At the step, no verdict is taken for a no."""

    def __init__(self, store: dist.Store, reply: Connection) -> None:
        self._reply = reply
        self._pending: dict[str, Proposal] = {}
        self._committed: set[str] = set()
        self._lock = threading.Lock()
        self._step = 0

    def take(self, message: Proposal | str) -> None:
        with self._lock:
            if isinstance(message, str):
                self._committed.add(message)
                return
            if self._step >= message.step:
                return
            self._pending[message.vote] = message
        self._reply.send(message.vote)

    def begin(self, step: int) -> list[Proposal]:
        with self._lock:
            self._step = step
            due = [self._pending.pop(v) for v, p in tuple(self._pending.items()) if p.step <= step]
            due.sort(key=lambda proposal: (proposal.step, proposal.number))
            return [proposal for proposal in due if proposal.vote in self._committed]

    def close(self) -> str:
        return ""


PROTOCOLS: dict[str, Any] = {
    "vote": Voting,
    "on_receipt": OnReceipt,
    "daemon_decides": DaemonDecides,
}


def run(protocol: str, conditions: Conditions, directory: Path) -> list[Journal]:
    """Let the ranks go through the conditions; their journals by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "tests.distributed.chaos"])
    address, server = _serve(conditions, directory)
    steps = context.Array("q", [0] * conditions.ranks + [UNKNOWN])  # the last: where to end
    pipes = [context.Pipe() for _ in range(conditions.ranks)]
    ranks = [
        context.Process(
            target=_rank,
            args=(rank, protocol, conditions, address, steps, theirs, directory / f"journal-{rank}"),
        )
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    try:
        while any(step == 0 for step in steps[:-1]):
            time.sleep(0.01)
        _propose(protocol, conditions, steps, [ours for ours, _ in pipes], [p.pid or 0 for p in ranks])
        for process in ranks:
            process.join(60)
    finally:
        for process in ranks:
            process.kill()
            process.join()
        for ours, theirs in pipes:
            ours.close()
            theirs.close()
    del server
    return [_read(directory / f"journal-{rank}") for rank in range(conditions.ranks)]


def disagreements(journals: list[Journal]) -> list[int]:
    """Commands that were not applied at the same step, in the same order, by all survivors or by none.

    A rank that was killed counts with what it had applied: others may have applied more since.
    """
    survivors = [journal for journal in journals if journal.parameter is not None]
    dead = [journal for journal in journals if journal.parameter is None]
    assert survivors, "no rank came through"
    steps: dict[int, set[int | None]] = {}
    for command in {command for journal in journals for command, _ in journal.applied}:
        steps[command] = {dict(journal.applied).get(command) for journal in survivors}
        steps[command] |= {s for journal in dead if (s := dict(journal.applied).get(command)) is not None}
    return sorted(command for command, seen in steps.items() if len(seen) > 1)


def _serve(conditions: Conditions, directory: Path) -> tuple[str, object]:
    if conditions.store == "file":
        return str(directory / "store"), None
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return f"127.0.0.1:{server.port}", server


def _open(conditions: Conditions, address: str) -> dist.Store:
    if conditions.store == "file":
        return dist.FileStore(address, conditions.ranks)
    host, _, port = address.partition(":")
    return dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False)


def _propose(
    protocol: str,
    conditions: Conditions,
    steps: "SynchronizedArray[int]",
    pipes: list[Connection],
    pids: list[int],
) -> None:
    """The daemon's part: proposals at random moments, and for one mutant, its decision."""
    dice = random.Random(conditions.seed)
    voted: dict[str, int] = {}
    kill_at = sorted(dice.sample(range(conditions.commands), conditions.kills))
    number, proposed_at = 0, time.monotonic()
    while number < conditions.commands:
        if protocol == "daemon_decides":
            _decide(conditions, pipes, voted, dice)
        if time.monotonic() < proposed_at:
            time.sleep(0.0005)
            continue
        proposed_at = time.monotonic() + dice.expovariate(1 / conditions.every)
        if kill_at and kill_at[0] == number:
            victim = dice.choice([rank for rank, step in enumerate(steps[:-1]) if step != DEAD])
            os.kill(pids[victim], signal.SIGKILL)
            steps[victim] = DEAD
            kill_at.pop(0)
        proposal = Proposal(
            number=number,
            vote=f"{conditions.seed}-{number}",
            n=conditions.ranks,
            step=max(steps[:-1]) + conditions.margin,
            factor=dice.choice((0.5, 0.8, 1.25)),
        )
        for pipe in pipes:
            _send(pipe, proposal, conditions, dice)
        number += 1
    steps[-1] = max(steps[:-1]) + 4 * conditions.margin


def _decide(
    conditions: Conditions, pipes: list[Connection], voted: dict[str, int], dice: random.Random
) -> None:
    for pipe in pipes:
        while pipe.poll():
            vote = pipe.recv()
            voted[vote] = voted.get(vote, 0) + 1
            if voted[vote] == conditions.ranks:
                for other in pipes:
                    _send(other, vote, conditions, dice)


def _send(pipe: Connection, message: Any, conditions: Conditions, dice: random.Random) -> None:
    if dice.random() >= conditions.loss:
        _post(pipe, (time.monotonic() + dice.expovariate(1 / conditions.delay), message))


def _post(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return


def _rank(
    rank: int,
    protocol: str,
    conditions: Conditions,
    address: str,
    steps: "SynchronizedArray[int]",
    pipe: Connection,
    journal: Path,
) -> None:
    store = _open(conditions, address)
    agent: Scheme = PROTOCOLS[protocol](store, pipe)

    def listen() -> None:
        while True:
            due, proposal = pipe.recv()
            time.sleep(max(0.0, due - time.monotonic()))
            agent.take(proposal)

    threading.Thread(target=listen, daemon=True).start()
    dice = random.Random(conditions.seed * 1_000 + rank)
    parameter, factor, step = 1.0, 1.0, 0
    with journal.open("w", buffering=1) as lines:
        while step != steps[-1]:
            step += 1
            for proposal in agent.begin(step):
                lines.write(f"applied {proposal.number} {step}\n")
                factor *= proposal.factor
            parameter += 1e-3 * factor * math.sin(step)
            _keep_up(rank, step, steps)
            time.sleep(dice.expovariate(1 / conditions.step_time))
        steps[rank] = DEAD
        lost = agent.close()
        lines.write(f"end {parameter.hex()} {lost}\n")


def _keep_up(rank: int, step: int, steps: "SynchronizedArray[int]") -> None:
    """What an all-reduce does to the pace: nobody is more than a step ahead of the living."""
    steps[rank] = step
    while any(other not in (DEAD, 0) and other < step for other in steps[:-1]):
        time.sleep(0.0002)


def _read(path: Path) -> Journal:
    journal = Journal()
    for line in path.read_text().splitlines():
        match line.split(maxsplit=2):
            case ["applied", command, step]:
                journal.applied.append((int(command), int(step)))
            case ["end", parameter, *lost]:
                journal.parameter, journal.lost = float.fromhex(parameter), " ".join(lost)
    return journal
