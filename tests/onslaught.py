"""A daemon that is killed at random moments under load: `python -m tests.onslaught --kills 200 --seed 7`.

Two runs of four ranks each train at once: two parts of the tensors with two replicas of each; in the one
run there are faults for the detectors, in the other commands. After every SIGKILL, before a new daemon has
the store, the store is held against the journals of the ranks: what was acknowledged is there, once, bit
for bit, and so is every command that a client was told is taken. In the end the findings are held against
those of detectors that saw the same series without a break, and the commands against what the ranks
applied.
"""

import argparse
import math
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from optwatch.client import Client, DaemonError
from optwatch.daemon.chunks import ChunkKind, split
from optwatch.daemon.diagnosis import Diagnosis
from optwatch.daemon.history import History
from optwatch.daemon.ledger import read_commands, read_findings
from optwatch.daemon.schemas import read_schema
from optwatch.daemon.store import FILE
from optwatch.daemon.tables import connect
from optwatch.daemon.upkeep import check
from optwatch.wire.actions import OPEN_STATES
from optwatch.wire.places import state_dir
from tests.daemons import GUARD, DaemonProcess, home_of_its_own
from tests.simulated import RANKS, SHARDS, SimulatedRank, SimulatedRun, Trainings


class Operator(threading.Thread):
    """A client that commands one run, and knows what it was told is taken."""

    def __init__(self, daemon: DaemonProcess, run: str, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.taken: list[str] = []
        self.stopped = False
        self._daemon, self._run, self._dice = daemon, run, dice

    def run(self) -> None:
        while not self.stopped:
            try:
                with Client(self._daemon.address, timeout=1.0) as client:
                    while not self.stopped:
                        action, args = self._dice.choice(
                            (
                                ("scale_lr", {"factor": 0.5}),
                                ("scale_lr", {"reset": True}),
                                ("clip", {"max_norm": 1.0}),
                            )
                        )
                        self.taken.append(client.act(self._run, action, args).id)
                        time.sleep(self._dice.uniform(0.05, 0.5))
            except DaemonError:  # it is dead, not up yet, or will not take one more halving
                time.sleep(0.1)


@dataclass
class Outcome:
    """What came of an onslaught. `problems` is empty where nothing was lost, doubled or changed."""

    kills: int = 0
    steps: int = 0
    acknowledged: int = 0
    commands: int = 0
    applied: int = 0
    findings: int = 0
    merged_chunks: int = 0
    reconnect: list[float] = field(default_factory=list)
    """For each kill, seconds from the new daemon's listening until all links are welcome."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        took = sorted(self.reconnect) or [math.nan]  # none had been connected when it was killed
        return (
            f"{self.kills} kills, {self.steps} steps of {2 * RANKS} ranks, {self.acknowledged} messages "
            f"acknowledged, {self.merged_chunks} chunks merged, {self.findings} findings, "
            f"{self.commands} commands ({self.applied} applied); all "
            f"links back after {took[len(took) // 2]:.2f} s (median), "
            f"{took[-1]:.2f} s (longest); {len(self.problems)} problems"
        )


def onslaught(directory: Path, kills: int, seed: int, calm: float = 0.8) -> Outcome:
    """Kill a daemon again and again, `calm` seconds apart on average, and look what it has kept."""
    dice = random.Random(seed)
    outcome = Outcome()
    daemon = DaemonProcess(directory).start()
    runs = [SimulatedRun(name, daemon.address, seed, name == "faulty") for name in ("faulty", "commanded")]
    ranks = [rank for run in runs for rank in run.ranks]
    for rank in ranks:
        rank.link.start()
    trainings = Trainings(runs)
    operator = Operator(daemon, runs[1].run, random.Random(seed + 1))
    trainings.start()
    operator.start()
    try:
        for _ in range(kills):
            time.sleep(dice.choice((dice.uniform(0, 0.2), min(dice.expovariate(1 / calm), 6 * calm))))
            acked = {rank.session: rank.acked for rank in ranks}
            taken = tuple(operator.taken)
            daemon.kill()
            killed = time.monotonic()
            outcome.kills += 1
            _compare(runs, acked, taken, outcome, thorough=outcome.kills % 10 == 1)
            if outcome.kills % 20 == 0:
                print(f"{outcome.kills} kills, {len(outcome.problems)} problems", flush=True)
            daemon.start()
            if dice.random() < 0.8:
                outcome.reconnect.append(_reconnected(ranks, killed, time.monotonic()))
        operator.stopped = True
        operator.join(GUARD)
        _settle(daemon, runs[1], outcome)
        trainings.stopped = True
        trainings.join()
        _until(lambda: all(not rank.link.outbox.queued for rank in ranks), "the links to be empty")
    finally:
        trainings.stopped = operator.stopped = True
        for rank in ranks:
            rank.link.stop("done")
    daemon.stop()
    outcome.steps = runs[0].step
    for rank in ranks:
        outcome.acknowledged += rank.acked
        if rank.acked != len(rank.journal) + 1 or rank.link.outbox.ring.dropped:  # and the bye
            outcome.problems.append(f"rank {rank.number}: {rank.acked} of {len(rank.journal)} acknowledged")
    acked = {rank.session: rank.acked - 1 for rank in ranks}
    _compare(runs, acked, operator.taken, outcome, thorough=True)
    with _opened() as connection:
        _judge_findings(connection, runs[0], outcome)
        _judge_commands(connection, runs[1], outcome)
    return outcome


# --- what was acknowledged, against the journals ----------------------------------------------------------


def _compare(
    runs: Sequence[SimulatedRun],
    acked: Mapping[str, int],
    taken: Sequence[str],
    outcome: Outcome,
    *,
    thorough: bool,
) -> None:
    """Hold the store that a daemon has left behind against what it had acknowledged."""
    say = outcome.problems.append
    if thorough and (wrong := check(state_dir()).problems):
        say(f"after kill {outcome.kills}: {wrong}")
    with _opened() as connection:
        for run in runs:
            reach: dict[int, int] = {}
            for rank in run.ranks:
                row = connection.execute(
                    "SELECT acked FROM session WHERE session = ?", (rank.session,)
                ).fetchone()
                reach[rank.number] = row[0] if row else 0
                if reach[rank.number] < acked[rank.session]:
                    say(f"kill {outcome.kills}: {rank.session} had {acked[rank.session]}, the store {row}")
                _compare_scalars(connection, run, rank, reach[rank.number], outcome)
            _compare_samples(connection, run, reach, outcome)
        known = {entry.command.id for entry in read_commands(connection, runs[1].run)}
        if missing := set(taken) - known:
            say(f"kill {outcome.kills}: commands {sorted(missing)} were taken and are gone")
        (merged,) = connection.execute("SELECT COUNT(*) FROM chunk WHERE level > 0").fetchone()
        outcome.merged_chunks = max(outcome.merged_chunks, merged)


def _compare_scalars(
    connection: sqlite3.Connection, run: SimulatedRun, rank: SimulatedRank, reach: int, outcome: Outcome
) -> None:
    """The rows of a rank are those of its messages up to `reach`, each once, none of a later one."""
    sent = [blocks for _, blocks in rank.journal[:reach] if blocks is not None]
    stored = list(_chunks(connection, run, "s", rank.number))
    if not sent and not stored:
        return
    wanted = [
        np.concatenate([getattr(blocks, name) for blocks in sent])
        for name in ("step", "wall", "scalars", "logged")
    ]
    found = [np.concatenate([part[at] for part in stored]) for at in range(4)] if stored else []
    if [array.tobytes() for array in wanted] != [array.tobytes() for array in found]:
        steps = len(found[0]) if found else 0
        outcome.problems.append(
            f"kill {outcome.kills}: rank {rank.number} of {run.name} sent {len(wanted[0])} rows, "
            f"{steps} are stored or they differ"
        )


def _compare_samples(
    connection: sqlite3.Connection, run: SimulatedRun, reach: Mapping[int, int], outcome: Outcome
) -> None:
    """What is stored of a part of the tensors is what was sent; what all its replicas sent is stored."""
    for shard in range(SHARDS):
        stored: set[int] = set()
        sent: list[dict[int, tuple[bytes, bytes]]] = []
        complete = 1 << 53  # the last step of which all replicas have sent what they had
        for rank in run.ranks:
            if rank.number % SHARDS != shard:
                continue
            own = {
                step: (stats, counts)
                for step, (seq, stats, counts) in tuple(rank.samples.items())
                if seq <= reach[rank.number]
            }
            steps = [b.step[-1] for _, b in rank.journal[: reach[rank.number]][-9:] if b is not None]
            complete = min(complete, max(steps, default=0))
            sent.append(own)
            seen: list[int] = []
            for step, stats, counts in _chunks(connection, run, "t", rank.number):
                for at, number in enumerate(step[:, 0].tolist()):
                    seen.append(number)
                    if own.get(number) != (stats[at].tobytes(), counts[at].tobytes()):
                        outcome.problems.append(f"kill {outcome.kills}: a record of step {number} is another")
            if len(seen) != len(set(seen)):
                outcome.problems.append(
                    f"kill {outcome.kills}: records of rank {rank.number} are there twice"
                )
            stored |= set(seen)
        lost = {step for own in sent for step in own if step <= complete} - stored
        if lost:
            outcome.problems.append(
                f"kill {outcome.kills}: part {shard} of {run.name} lacks the records of {sorted(lost)[:8]}"
            )


def _chunks(
    connection: sqlite3.Connection, run: SimulatedRun, kind: ChunkKind, rank: int
) -> Iterator[list[np.ndarray]]:
    query = (
        "SELECT schema, rows, data FROM chunk WHERE run = ? AND kind = ? AND rank = ? "
        "ORDER BY first, level DESC, id"
    )
    for digest, rows, data in connection.execute(query, (run.run, kind, rank)).fetchall():
        yield split(kind, read_schema(connection, run.run, 0, digest), rows, data)


# --- what was concluded -------------------------------------------------------------------------------------


def _judge_findings(connection: sqlite3.Connection, run: SimulatedRun, outcome: Outcome) -> None:
    """The findings are those of detectors that saw the whole series at once."""
    reference = Diagnosis(run.run, "observe")
    for points in History(connection).sampled_points(run.run, 0):
        reference.take(points, (), (), "observe")
    told = [(f.kind, f.step, f.onset_step, f.resolved_step) for f in read_findings(connection, run.run)]
    wanted = [(f.kind, f.step, f.onset_step, f.resolved_step) for f in reference.findings]
    outcome.findings = len(told)
    if told != wanted:
        other = sorted(set(told) ^ set(wanted), key=str)
        outcome.problems.append(f"findings that only this or only an undisturbed daemon has: {other}")


def _settle(daemon: DaemonProcess, run: SimulatedRun, outcome: Outcome) -> None:
    """Wait until no command is open any more, and look whether the daemon knows what is in force."""
    with daemon.client() as client:
        _until(
            lambda: all(command.state not in OPEN_STATES for command in client.commands(run.run)),
            "the commands to come to their end",
        )
        scale = 1.0
        commands = {command.id: command for command in client.commands(run.run)}
        for number, _ in run.ranks[0].applied:  # in the order in which it took those of one step, too
            if (command := commands[number]).action == "scale_lr":
                scale = 1.0 if "reset" in command.args else scale * command.args["factor"]
        if not np.isclose(client.status(run.run).lr_scale, scale):
            outcome.problems.append(
                f"the LR scale is {scale}, the daemon holds {client.status(run.run).lr_scale}"
            )


def _judge_commands(connection: sqlite3.Connection, run: SimulatedRun, outcome: Outcome) -> None:
    """A command is applied, at the step that is told, where all ranks applied it; else nowhere."""
    journal: dict[str, set[tuple[int, int]]] = {}
    for rank in run.ranks:
        for number, step in rank.applied:
            if (rank.number, step) in journal.setdefault(number, set()):
                outcome.problems.append(f"rank {rank.number} applied command {number} twice at {step}")
            journal[number].add((rank.number, step))
    for entry in read_commands(connection, run.run):
        command, done = entry.command, journal.pop(entry.command.id, set())
        outcome.commands += 1
        outcome.applied += command.state in ("applied", "judged", "undone")
        told = {(rank, command.step) for rank in command.ranks_applied}
        if told != done or len(done) not in (0, RANKS):
            outcome.problems.append(f"command {command.id} {command.state}: told {told}, done {done}")
    if journal:
        outcome.problems.append(f"ranks applied what no book holds: {journal}")


# --- small helps --------------------------------------------------------------------------------------------


def _opened() -> "closing[sqlite3.Connection]":
    return closing(connect(str(state_dir() / FILE), read_only=True))


def _reconnected(ranks: Sequence[SimulatedRank], killed: float, listening: float) -> float:
    """Seconds from the new daemon's listening until all links are welcome there."""
    _until(lambda: all(rank.served > rank.greeted > killed for rank in ranks), "the links to come back")
    return max(rank.welcomed for rank in ranks) - listening


def _until(what: Callable[[], bool], name: str) -> None:
    end = time.monotonic() + 2 * GUARD
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {name}")
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    args = parser.parse_args()
    print("seed", args.seed, flush=True)
    with home_of_its_own() as home:
        outcome = onslaught(home, args.kills, args.seed)
    print(outcome)
    print("\n".join(outcome.problems[:40]))
    raise SystemExit(bool(outcome.problems))


if __name__ == "__main__":
    main()
