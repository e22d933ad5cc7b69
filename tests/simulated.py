"""Simulated ranks: a training without torch, whose links are the agent's own.

The ranks of a run go in lockstep and measure what follows from seed, rank and step alone. Each keeps a
journal of all that it gave to its link, so that a store can be held against it.
"""

import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from optwatch.wire import limits
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import (
    COUNTS,
    Ask,
    Batch,
    Beat,
    Bye,
    Follow,
    Hello,
    News,
    Prepare,
    Report,
    Schema,
    TensorInfo,
)
from optwatch_agent.link import Link
from tests.peers import COLUMNS, OPTIMIZER

RANKS = 4
SHARDS = 2
"""Parts of the tensors: of each there are RANKS / SHARDS replicas."""
TENSORS = 3
SAMPLE_EVERY = 5
STEP_TIME = 0.02
FAULT_EVERY = 400
"""Steps from one spell of NaN to the next, in a run with faults."""

Entry = tuple[Batch | Report | Bye, BatchBlocks | None]


@dataclass
class Votes:
    """The job's store of one run: who has voted for what, and what was decided. Under the run's lock."""

    favour: dict[str, set[int]] = field(default_factory=dict)
    verdict: dict[str, bool] = field(default_factory=dict)

    def decide(self, vote: str, n: int) -> bool:
        """The verdict, write-once: asked for at the vote's step at the latest."""
        return self.verdict.setdefault(vote, len(self.favour.get(vote, ())) == n)


class SimulatedRank:
    """One rank: what its link carries (`link.Source`), and the journal of it."""

    def __init__(self, run: "SimulatedRun", number: int, address: str) -> None:
        self.number = number
        self.session = uuid.uuid4().hex
        self.journal: list[Entry] = []
        """Entry i has the seq i + 1."""
        self.samples: dict[int, tuple[int, bytes, bytes]] = {}
        """By step: seq, statistics and counts of its per-tensor record."""
        self.applied: list[tuple[str, int]] = []
        self.greeted = self.served = self.welcomed = 0.0
        """When its link last said hello, last sent a beat, and sent the first one after the last hello."""
        self.reduced = False
        self._run = run
        self._rows: list[int] = []
        self._reports: list[Report] = []
        self._pending: list[Prepare] = []
        self._known: set[str] = set()
        shard = number % run.shards
        self.schema = Schema(
            session=self.session,
            optimizer=0,
            digest="own",
            scalars=COLUMNS,
            tensors=tuple(
                TensorInfo(
                    f"layer.{i}.weight",
                    (10 * run.shards, i + 1),
                    "float32",
                    0,
                    (("dp", shard),),
                    10 * (i + 1),
                )
                for i in range(run.tensors)
            ),
        )
        self.link = Link(self, self.session, address)

    # --- the training thread, under the run's lock ----------------------------------------------------

    def step(self, step: int) -> None:
        due = [p for p in self._pending if not p.steps or p.steps[0] <= step]
        for prepare in sorted(due, key=lambda p: (p.steps, p.order, p.vote)):  # as agents do, on all ranks
            self._pending.remove(prepare)
            if self._run.votes.decide(prepare.vote, prepare.n):
                self.applied.append((prepare.command, step))
                self._report(prepare, "applied", (step,))
            else:
                self._report(prepare, "aborted")
        self._rows.append(step)

    def _report(self, prepare: Prepare, state: str, steps: tuple[int, ...] = ()) -> None:
        self._reports.append(
            Report(
                session=self.session,
                seq=0,
                command=prepare.command,
                vote=prepare.vote,
                state=state,  # type: ignore[arg-type]
                steps=steps,
            )
        )

    # --- the link's thread ----------------------------------------------------------------------------

    def ready(self) -> bool:
        return True

    @property
    def run(self) -> str:
        return self._run.run

    def hello(self) -> Hello:
        self.greeted = time.monotonic()
        return Hello(
            protocol=limits.PROTOCOL,
            session=self.session,
            run=self._run.run,
            name=self._run.name,
            incarnation=0,
            job="",
            rank=self.number,
            world_size=self._run.world_size,
            host="here",
            pid=os.getpid(),
            started=self._run.started,
            optimizers=(OPTIMIZER,),
            allow=("restart", "scale_lr", "clip"),
            control="armed",
        )

    def collect(
        self, everything: bool
    ) -> list[tuple[Batch | Report | Bye, BatchBlocks | None, Schema | None]]:
        if self._run.hasty:
            self.link.hurry()
        with self._run.lock:
            rows, self._rows = self._rows, []
            reports, self._reports = self._reports, []
        out: list[tuple[Batch | Report | Bye, BatchBlocks | None, Schema | None]] = []
        if rows:
            blocks = self._run.blocks(self.number, rows, sampled=not self.reduced)
            header = Batch(
                session=self.session,
                seq=0,
                optimizer=0,
                schema=self.schema.digest,
                steps=len(rows),
                sampled=len(blocks.sample_step),
            )
            out.append((header, blocks, self.schema))
        out += [(report, None, None) for report in reports]
        for message, own, _ in out:
            self.journal.append((message, own))
            for at, step in enumerate(own.sample_step.tolist() if own is not None else ()):
                self.samples[step] = len(self.journal), own.stats[at].tobytes(), own.counts[at].tobytes()
        return out

    def account(self, share: float) -> None:
        pass

    def pressing(self) -> bool:
        return False

    def beat(self) -> Beat:
        before, self.served = self.served, time.monotonic()
        if before < self.greeted:
            self.welcomed = self.served
        with self._run.lock:
            step = self._run.step
        return Beat(
            session=self.session,
            steps=(step,),
            phase="forward",
            phase_time=0.0,
            overhead=0.0,
            sample_every=SAMPLE_EVERY,
            queued=self.link.outbox.queued,
            dropped=self.link.outbox.ring.dropped,
            control="armed",
            oldest=self.link.outbox.oldest,
            reduced=self.reduced,
            thinned=self.link.outbox.ring.thinned,
            sent=self.link.outbox.sent,
            clock=time.monotonic(),
        )

    def follow(self) -> Follow | None:
        return None

    def hear(self, news: News) -> None:
        return

    def take(self, prepare: Prepare) -> None:
        with self._run.lock:
            if prepare.vote in self._known:
                return
            self._known.add(prepare.vote)
            if prepare.steps[0] <= self._run.step:
                self._run.votes.verdict.setdefault(prepare.vote, False)
                self._report(prepare, "aborted")
            else:
                self._pending.append(prepare)
                self._run.votes.favour.setdefault(prepare.vote, set()).add(self.number)
                self._report(prepare, "pending")

    def assign(self, reduced: bool) -> None:
        self.reduced = reduced

    def answer(self, ask: Ask) -> None:
        return

    @property
    def acked(self) -> int:
        return self.link.outbox.acked


class SimulatedRun:
    """Ranks in lockstep. What is measured follows from seed, rank and step alone."""

    def __init__(
        self,
        name: str,
        address: str,
        seed: int,
        faults: bool,
        *,
        run: str = "",
        numbers: Sequence[int] = range(RANKS),
        world_size: int = RANKS,
        hasty: bool = True,
        shards: int = SHARDS,
        tensors: int = TENSORS,
    ) -> None:
        """Ranks `numbers` of the job's `world_size`; `hasty` links do not wait for a tenth of a second."""
        self.name = name
        self.run = run or uuid.uuid4().hex
        self.world_size = world_size
        self.hasty = hasty
        self.shards, self.tensors = shards, tensors
        self.started = time.time()
        self.lock = threading.Lock()
        self.step = 0
        self.votes = Votes()
        self._seed = seed
        self._faults = faults
        self.ranks = [SimulatedRank(self, number, address) for number in numbers]

    def advance(self) -> None:
        with self.lock:
            self.step += 1
            for rank in self.ranks:
                rank.step(self.step)

    def blocks(self, rank: int, steps: Sequence[int], *, sampled: bool) -> BatchBlocks:
        step = np.array(steps, dtype=np.int64)
        sample_step = step[step % SAMPLE_EVERY == 0] if sampled else step[:0]
        k = len(sample_step)
        scalars, logged = self._scalars(rank, step)
        counts = np.zeros((k, self.tensors, len(COUNTS)), np.uint64)
        counts[:, :, 0] = sample_step[:, None]  # the zeros tell the step
        if self._faults:  # now and then one gradient has an element that is not finite
            counts[sample_step % FAULT_EVERY == FAULT_EVERY // 2, 1, 1] = 1
        stats = 0.5 + uniform(self._seed, 1_000_000 + rank % self.shards, sample_step, self.tensors * 12)
        return BatchBlocks(
            step=step,
            wall=1e9 + step * STEP_TIME + rank * 1e-4,
            scalars=scalars,
            logged=logged,
            sample_step=sample_step,
            stats=stats.astype(np.float32).reshape(k, self.tensors, 12),
            counts=counts,
        )

    def _scalars(self, rank: int, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, S] values, and whether each was logged."""
        chance = uniform(self._seed, rank, step, 7)
        values = np.empty((len(step), 4))
        values[:, 0] = 1.0 + np.exp(-step / 300) + 0.02 * (chance[:, :3].sum(1) - 1.5)
        values[:, 1] = 0.5 + 0.02 * (chance[:, 3:6].sum(1) - 1.5)
        values[:, 2], values[:, 3] = STEP_TIME, 1e-3
        if self._faults:
            bad = (step + 1) % FAULT_EVERY <= 1
            values[bad, :2] = np.where(step[bad, None] % 2, np.inf, np.nan)
        logged = np.ones((len(step), 4), np.uint8)
        logged[:, 2] = chance[:, 6] < 0.9
        return values, logged


def uniform(seed: int, stream: int, step: np.ndarray, width: int) -> np.ndarray:
    """[n, width] numbers in [0, 1) that follow from seed, stream, step and place alone (SplitMix64: Steele,
    Lea and Flood, "Fast splittable pseudorandom number generators", 2014). A generator for each step would
    take longer than all else that a link does."""
    first = np.uint64((seed * 0xD1B54A32D192ED03 + stream * 0xABC98388FB8FAC03) % (1 << 64))
    with np.errstate(over="ignore"):
        z = first + (step.astype(np.uint64)[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64))
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


class Trainings(threading.Thread):
    """Runs that step."""

    def __init__(self, runs: Sequence[SimulatedRun], step_time: float = STEP_TIME) -> None:
        super().__init__(daemon=True)
        self.stopped = False
        self._step_time = step_time
        self._runs = runs

    def run(self) -> None:
        while not self.stopped:
            for run in self._runs:
                run.advance()
            time.sleep(self._step_time)
