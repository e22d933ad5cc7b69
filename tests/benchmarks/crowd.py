"""Many simulated ranks in one thread, for measuring a daemon: cheap, and on the wire as the agent's own.

Each rank has a connection of its own, numbers what it sends, keeps it in the agent's ring until it is
acknowledged, and sends again what the daemon asks for. It takes its turns as often as the agents' links do,
each at a moment of its own. What the ranks measure is packed once for many of them.
"""

import itertools
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.synchronize import Event
from typing import Any

import msgspec
import numpy as np
import zmq

from optwatch.client.link import connect, resolve
from optwatch.wire import limits
from optwatch.wire.frames import AGENT, BatchBlocks, Buffer, daemon_decoder, pack, unpack
from optwatch.wire.messages import (
    COUNTS,
    STATS,
    Ack,
    Assign,
    Batch,
    Beat,
    Hello,
    Prepare,
    Report,
    Schema,
    TensorInfo,
    Welcome,
)
from optwatch.wire.pace import Pace
from optwatch_agent.ring import Ring
from tests.peers import OPTIMIZER

COLUMNS = ("loss", "grad_norm", "step_time", "update_norm", "param_norm", "lr", "arrival")
LOSS, NORM = COLUMNS.index("loss"), COLUMNS.index("grad_norm")
TIMES = [COLUMNS.index("step_time"), COLUMNS.index("arrival")]
MOMENT = 0.01
"""Seconds between two moments at which ranks take their turns, a part of them at each."""
LISTEN = 2
"""Moments between two at which all ranks hear what the daemon wants of them; agents hear it at once."""
KEPT = 256
"""Batches that are kept packed."""
BEAT = 1.0
IN_FLIGHT = 64
"""Messages that are sent before the first of them is acknowledged: the agent's own number."""
GROWN = 1e6
"""The factor by which gradients grow at most."""
VOTES = 256
"""Votes of a run that are kept apart."""
UNDECIDED, COMMIT, ABORT = range(3)

TOLD = (
    "step",
    "rows",
    "samples",
    "thinned",
    "dropped",
    "waiting",
    "behind",
    "late",
    "joined",
    "cpu",
    "ended",
)
"""What each process of ranks tells while it runs: totals over its ranks, but for the step, and seconds."""


@dataclass(frozen=True)
class Crowd:
    """What all ranks have in common."""

    address: str
    run: str
    ranks: int
    parts: int
    """Parts that the tensors are divided into: of each there are ranks / parts replicas."""
    tensors: int
    rate: float
    """Steps per second of every rank."""
    sample_every: int
    settling: float
    """Seconds that what was sent may take to be acknowledged, when nothing more is sent."""
    apart: bool = False
    """Whether each rank is a run of its own."""

    @property
    def world_size(self) -> int:
        return 1 if self.apart else self.ranks

    def place(self, number: int) -> tuple[str, int]:
        """The run of a rank, and which one it is there."""
        return (f"{self.run[:-4]}{number:04x}", 0) if self.apart else (self.run, number)


class Ballot:
    """The job's store: who has voted for what, and what was decided, write-once, over processes."""

    def __init__(self, spawn: Any) -> None:
        self._favour = spawn.Array("i", VOTES)
        self._verdict = spawn.Array("i", VOTES)

    def favour(self, order: int) -> None:
        with self._favour.get_lock():
            self._favour[order % VOTES] += 1

    def decide(self, order: int, n: int) -> int:
        """The verdict, asked for at the vote's step."""
        with self._favour.get_lock():
            at = order % VOTES
            if self._verdict[at] == UNDECIDED:
                self._verdict[at] = COMMIT if self._favour[at] == n else ABORT
            return int(self._verdict[at])


class Rank:
    """One rank. It does as the daemon tells it."""

    def __init__(self, crowd: Crowd, number: int, socket: "zmq.Socket[bytes]", ballot: Ballot) -> None:
        self.ring = Ring()
        self.reduced = False
        self.late = 0
        """Proposals that came after their step."""
        self.welcomed = False
        self.step = 0
        self.socket = socket
        self._ballot = ballot
        self._session = os.urandom(16).hex()
        schema = schema_of(crowd, number % crowd.parts)
        self._digest = schema.digest
        self._schema = pack(msgspec.structs.replace(schema, session=self._session))
        self._schema_known = False
        self._seq = self._acked = self._sent = 0
        self._pending: dict[str, Prepare] = {}
        self._next_beat = 0.0
        self._sample_every = crowd.sample_every
        run, rank = crowd.place(number)
        self._send(
            pack(
                Hello(
                    protocol=limits.PROTOCOL,
                    session=self._session,
                    run=run,
                    name="crowd",
                    incarnation=0,
                    job="",
                    rank=rank,
                    world_size=crowd.world_size,
                    host=f"host{number // 8}",
                    pid=number + 1,
                    started=time.time(),
                    optimizers=(OPTIMIZER,),
                    allow=("restart", "scale_lr", "clip"),
                    control="armed",
                )
            )
        )

    def turn(self, measured: "Measured", step: int, now: float) -> int:
        """Take what the daemon has said, and send what was measured up to a step; how many records of tensors
        that was."""
        self.listen(step)
        for prepare in [each for each in self._pending.values() if each.steps[0] <= step]:
            del self._pending[prepare.vote]
            applied = self._ballot.decide(prepare.order, prepare.n) == COMMIT
            self._report(prepare, *(("applied", prepare.steps) if applied else ("aborted",)))
        sampled = 0
        if step > self.step:
            blocks, sampled = measured.blocks(self.step + 1, step, not self.reduced)
            self._seq += 1
            batch = Batch(
                session=self._session,
                seq=self._seq,
                optimizer=0,
                schema=self._digest,
                steps=step - self.step,
                sampled=sampled,
            )
            self.ring.add(self._seq, [*pack(batch), *blocks], batch, self._digest)
            self.step = step
        self.speak(now)
        return sampled

    def speak(self, now: float) -> None:
        """A beat where it is time, and what is still to be sent."""
        if now >= self._next_beat:
            self._next_beat = now + BEAT
            self._send(pack(self._beat()))
        if not self._schema_known:
            self._schema_known = self._send(self._schema)
        oldest = self.ring.oldest or 0
        for held in self.ring:
            if held.seq <= self._sent:
                continue
            if held.seq > self._acked + IN_FLIGHT and held.seq >= oldest + IN_FLIGHT:
                return
            if not self._send(held.parts):
                return
            self._sent = held.seq

    def listen(self, step: int) -> bool:
        """Take what the daemon has to say, the training is at a step; whether it calls for an answer."""
        more = False
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return more
            message, _ = unpack(parts, daemon_decoder)
            more |= not isinstance(message, Ack)
            match message:
                case Ack(acked=acked):
                    self._acked = max(self._acked, acked)
                    self.ring.forget(acked)
                case Welcome(acked=acked):
                    self._acked = max(self._acked, acked)
                    self.ring.forget(acked)
                    self._sent = max(acked, (self.ring.oldest or self._seq + 1) - 1)
                    self.welcomed, self._schema_known = True, False
                case Assign(reduced=reduced):
                    self.reduced = reduced
                    self._next_beat = 0.0
                case Prepare() if message.vote not in self._pending:
                    self._vote(message, step)

    def _vote(self, prepare: Prepare, step: int) -> None:
        if prepare.n == 1:  # there is nobody to agree with
            self._report(prepare, "pending")
            self._report(prepare, "applied", (step + 1,))
            return
        if prepare.steps[0] <= step:
            self.late += 1
            self._ballot.decide(prepare.order, prepare.n)
            self._report(prepare, "aborted")
            return
        self._pending[prepare.vote] = prepare
        self._ballot.favour(prepare.order)
        self._report(prepare, "pending")

    def _report(self, prepare: Prepare, state: Any, steps: tuple[int, ...] = ()) -> None:
        self._seq += 1
        report = Report(
            session=self._session,
            seq=self._seq,
            command=prepare.command,
            vote=prepare.vote,
            state=state,
            steps=steps,
        )
        self.ring.add(self._seq, pack(report), None, "")

    def _beat(self) -> Beat:
        return Beat(
            session=self._session,
            steps=(self.step,),
            phase="forward",
            phase_time=0.0,
            overhead=0.005,
            sample_every=self._sample_every,
            queued=len(self.ring),
            dropped=self.ring.dropped,
            control="armed",
            oldest=self.ring.oldest or self._seq + 1,
            reduced=self.reduced,
            thinned=self.ring.thinned,
            sent=self._sent,
            clock=time.monotonic(),
        )

    def _send(self, parts: Sequence[Buffer]) -> bool:
        try:
            self.socket.send_multipart([AGENT, *parts], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


@lru_cache(maxsize=64)
def schema_of(crowd: Crowd, part: int) -> Schema:
    """What the ranks of a part hold of the tensors."""
    shard = (("dp", part),) if crowd.parts > 1 else ()
    return Schema(
        session="",
        optimizer=0,
        digest=f"part {part}",
        scalars=COLUMNS,
        tensors=tuple(
            TensorInfo(f"layer.{i}.weight", (10 * crowd.parts, i + 1), "float32", 0, shard, 10 * (i + 1))
            for i in range(crowd.tensors)
        ),
    )


class Measured:
    """What the ranks measure: noise about a loss that falls, until something goes wrong. Packed once for all
    that send the same steps."""

    def __init__(self, crowd: Crowd, seed: int) -> None:
        self.grown = 1.0
        """The factor by which gradients have grown."""
        self._crowd = crowd
        self._noise = np.random.default_rng(seed)
        self._values: list[np.ndarray] = []
        self._packed: dict[tuple[int, int, bool], tuple[Sequence[Buffer], int]] = {}

    def reach(self, step: int, wrong: bool) -> None:
        """Go on to a step."""
        while len(self._values) < step:
            self.grown = min(self.grown * 3, GROWN) if wrong else 1.0
            values = self._noise.normal(1.0, 0.01, size=len(COLUMNS))
            values[LOSS] += np.exp(-len(self._values) / 200) + (self.grown - 1) * 0.1
            values[NORM] *= self.grown
            values[TIMES] *= 1 / self._crowd.rate, 0.5 / self._crowd.rate  # from which a vote's step follows
            self._values.append(values)

    def blocks(self, first: int, last: int, full: bool) -> tuple[Sequence[Buffer], int]:
        """The blocks of a batch of some steps, with their per-tensor records if `full`; how many of these."""
        key = first, last, full
        if key not in self._packed:
            if len(self._packed) >= KEPT:
                del self._packed[next(iter(self._packed))]
            self._packed[key] = self._pack(first, last, full)
        return self._packed[key]

    def _pack(self, first: int, last: int, full: bool) -> tuple[Sequence[Buffer], int]:
        step = np.arange(first, last + 1, dtype=np.int64)
        sampled = step[step % self._crowd.sample_every == 0] if full else step[:0]
        values = np.array(self._values[first - 1 : last])
        shape = len(sampled), self._crowd.tensors
        blocks = BatchBlocks(
            step=step,
            wall=time.time() - (last - step) / self._crowd.rate,
            scalars=values,
            logged=np.ones(values.shape, dtype=np.uint8),
            sample_step=sampled,
            stats=self._noise.uniform(0.5, 1.5, size=(*shape, len(STATS))).astype(np.float32),
            counts=np.zeros((*shape, len(COUNTS)), dtype=np.uint64),
        )
        return [block.tobytes() for block in blocks.blocks()], len(sampled)


def stay() -> None:
    """Leave it to the program, which such a signal ends early, to end this process: it is yet to report."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def send(
    crowd: Crowd, numbers: range, ballot: Ballot, begin: Event, wrong: Event, ended: Event, told: Any
) -> None:
    """Some of the ranks, in a process of their own. `told`: an array of `TOLD`, kept up to date."""
    stay()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * len(numbers) + 16)
    address, key = resolve(crowd.address)
    ranks = [Rank(crowd, n, connect(context, zmq.DEALER, address, key), ballot) for n in numbers]
    tell = Telling(told, ranks)
    while not all(rank.welcomed for rank in ranks) and not ended.is_set():
        for rank in ranks:
            rank.listen(rank.step)
        tell(joined=sum(rank.welcomed for rank in ranks))
        time.sleep(0.02)
    for rank in ranks:  # so that it is known who holds what, before the first step
        rank.speak(time.monotonic())
    while not begin.wait(0.1) and not ended.is_set():
        for rank in ranks:
            rank.listen(rank.step)
    step_all(crowd, ranks, numbers.start, wrong, ended, told, tell)
    end = time.monotonic() + crowd.settling
    while tell.waiting and time.monotonic() < end:
        for rank in ranks:
            rank.listen(rank.step)
            rank.speak(time.monotonic())
        tell()
        time.sleep(0.02)
    context.destroy(linger=0)


def step_all(
    crowd: Crowd, ranks: list[Rank], seed: int, wrong: Event, ended: Event, told: Any, tell: "Telling"
) -> None:
    """Step at the pace that is asked for, until it is `ended`; ranks take their turns one after another."""
    measured = Measured(crowd, seed)
    pace = Pace(crowd.world_size)
    slices = max(int(pace.turn / MOMENT), 1)
    hasty_until = calm_until = rested_at = behind = 0.0
    quick_at = math.inf
    poller = zmq.Poller()
    by_socket = {rank.socket: rank for rank in ranks}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    samples = step = 0
    began = time.monotonic()
    for number in itertools.count():
        part = number % slices
        due = began + number * pace.turn / slices
        time.sleep(max(due - time.monotonic(), 0))
        now = time.monotonic()
        behind = max(behind, now - due)
        step = int((now - began) * crowd.rate)
        told[TOLD.index("step")] = step
        measured.reach(step, wrong.is_set())
        # A loss that leaves its range, not one that stays where it is: the links are quick for a while.
        if 1 < measured.grown < GROWN and now > calm_until:
            quick_at, hasty_until, calm_until = now, now + pace.haste, now + pace.calm
        over = ended.is_set()
        taking = ranks[part::slices] if now >= rested_at else []
        if over or now >= quick_at:  # all were woken by the same, and then rest as long as ever
            quick_at = now + pace.quick_turn if now < hasty_until else math.inf
            rested_at, taking = now + pace.turn / 2, ranks
        for rank in taking:
            samples += rank.turn(measured, step, now)
        for socket, _ in poller.poll(0) if not number % LISTEN else ():
            if (rank := by_socket[socket]).listen(step):
                samples += rank.turn(measured, step, now)
        if over or not part:
            tell(rows=sum(rank.step for rank in ranks), samples=samples, behind=behind)
        if over:
            return


class Telling:
    """Keeps an array of `TOLD` up to date."""

    def __init__(self, told: Any, ranks: Sequence[Rank]) -> None:
        self._told = told
        self._ranks = ranks

    @property
    def waiting(self) -> int:
        """Messages that are not acknowledged."""
        return sum(len(rank.ring) for rank in self._ranks)

    def __call__(self, **numbers: float) -> None:
        numbers |= {
            "thinned": sum(rank.ring.thinned for rank in self._ranks),
            "dropped": sum(rank.ring.dropped for rank in self._ranks),
            "late": sum(rank.late for rank in self._ranks),
            "waiting": self.waiting,
            "cpu": time.process_time(),
        }
        for name, number in numbers.items():
            self._told[TOLD.index(name)] = number


def start(
    crowd: Crowd, processes: int, ballot: Ballot, begin: Event, wrong: Event, ended: Event
) -> tuple[list[Any], list[Any]]:
    """Processes that simulate the ranks, and what each of them tells."""
    spawn = multiprocessing.get_context("spawn")
    share = -(-crowd.ranks // processes)
    started, told = [], []
    for first in range(0, crowd.ranks, share):
        numbers = range(first, min(first + share, crowd.ranks))
        told.append(spawn.Array("d", len(TOLD)))
        given = crowd, numbers, ballot, begin, wrong, ended, told[-1]
        started.append(spawn.Process(target=send, args=given, daemon=True))
        started[-1].start()
    return started, told
