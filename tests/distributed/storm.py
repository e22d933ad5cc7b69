"""A storm: real ranks under torchrun, a link that loses messages, a daemon that is killed, many commands.

    python -m tests.distributed.storm --ranks 4 --commands 1000 --seed 0

What the ranks themselves wrote down is the truth: before which step of each optimizer a command was
applied, and the bits of parameters and optimizer state now and then and at the end. `verdict` holds the
ranks against each other, and the daemon's book against them.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optwatch.client import Client, Refusal
from optwatch.wire.actions import OPEN_STATES, Command
from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, until
from tests.distributed.link import BadLink, Weather

SETTLED = 120.0
"""Seconds after which the daemon should know all that the ranks had to say."""
CHECK_EVERY = 100
"""Steps between two digests of all bits."""


@dataclass(frozen=True, kw_only=True)
class Storm(Weather):
    """What the ranks have to bear, beside the weather. Times in seconds."""

    ranks: int = 4
    commands: int = 1_000
    protocol: str = "vote"
    in_flight: int = 12
    every: float = 0.08
    """From one command to the next, on average, where not too many are under way."""
    kill_every: float = 25.0
    """From one SIGKILL of the daemon to the next, on average; 0: never."""
    step_time: float = 0.002
    most: float = 900.0
    """Seconds after which no more commands are given."""
    period: int = 5
    """The second optimizer steps once in so many steps of the first."""


@dataclass
class Journal:
    """What one rank wrote down, in order. steps: of each optimizer."""

    applied: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    """(command, its vote, steps)."""
    bits: dict[int, str] = field(default_factory=dict)


@dataclass
class Verdict:
    """What came of it."""

    commands: int
    states: dict[str, int]
    apart: list[str]
    """Commands that were not applied at the same steps by all ranks or by none."""
    order_differs: bool
    bits_differ: list[int]
    """Steps after which the ranks' bits differ."""
    bits_compared: int
    book_differs: list[str]
    """Commands of which the daemon says another thing than the ranks."""
    kills: int
    lost: int
    carried: int
    steps: int
    seconds: float

    @property
    def sound(self) -> bool:
        return not (self.apart or self.order_differs or self.bits_differ or self.book_differs)


def run(storm: Storm, directory: Path, tell: Callable[[str], None] = lambda text: None) -> Verdict:
    """Let the ranks go through a storm. The environment has to be one in which agents take no keys."""
    began = time.monotonic()
    dice = random.Random(storm.seed)
    # What the policy proposes nobody would approve.
    daemon = DaemonProcess(directory / "daemon", "--insecure", "--mode", "observe").start()
    link = BadLink(
        daemon.address,
        storm,
        decides=storm.protocol == "daemon_decides",
    )
    link.start()
    options = (
        *("--optimizers", "2", "--groups", "2", "--period", str(storm.period), "--budget", "0.01"),
        *("--snapshots", "1000000"),
        *("--jitter", str(storm.seed), "--step-time", str(storm.step_time), "--journal", str(CHECK_EVERY)),
        *("--protocol", storm.protocol, "--detach"),
    )
    kills = 0
    try:
        with Job(directory / "job", storm.ranks, *options, daemon=link.address) as job:
            with daemon.client() as client:
                run_id = armed_run(client)
            given, told = 0, time.monotonic()
            kill_at = time.monotonic() + storm.kill_every * dice.uniform(0.5, 1.5)
            client = daemon.client()
            commands: tuple[Command, ...] = ()
            while given < storm.commands or any(c.state in OPEN_STATES for c in commands):
                if time.monotonic() - began > storm.most:
                    break
                if storm.kill_every and time.monotonic() > kill_at and given < storm.commands:
                    client.close()
                    daemon.kill()
                    link.cut()
                    kills += 1
                    time.sleep(dice.uniform(0, 1.5))
                    daemon.start()
                    link.heal()
                    client = daemon.client()
                    kill_at = time.monotonic() + storm.kill_every * dice.uniform(0.5, 1.5)
                time.sleep(dice.expovariate(1 / storm.every))
                commands = client.commands(run_id)
                under_way = sum(c.state in OPEN_STATES for c in commands)
                if given < storm.commands and under_way < storm.in_flight:
                    given += _give(client, run_id, dice)
                if job.process.poll() is not None:
                    raise AssertionError(f"the training ended: {job.text()}")
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    states = dict(Counter(c.state for c in commands))
                    tell(f"{given}/{storm.commands} commands {states}, {kills} kills, {told - began:.0f} s")
            client.close()
            results = job.end()
        steps = results[0]["step"]
        with daemon.client() as client:  # what is behind comes with the queues that the ranks left
            until(client, lambda c: c.status(run_id).steps_recorded == steps or None, "all steps", SETTLED)
            commands = client.commands(run_id)
    finally:
        link.close()
        daemon.kill()
    journals = [_read(directory / "job" / f"journal-{rank}") for rank in range(storm.ranks)]
    seconds = time.monotonic() - began
    return _judge(storm, journals, results, commands, kills, link, seconds)


def _give(client: Client, run: str, dice: random.Random) -> int:
    """Give one random command; 1, or 0 where the daemon turned it away at the door."""
    action, args = dice.choice(
        (
            ("restart", {}),
            ("restart", {"warmup": dice.randint(1, 5)}),
            ("scale_lr", {"factor": dice.choice((0.5, 0.8, 1.25, 2.0))}),
            ("scale_lr", {"factor": dice.choice((0.5, 0.8, 1.25, 2.0)), "ramp": dice.randint(1, 9)}),
            ("scale_lr", {"reset": True}),
            ("clip", {"max_norm": dice.choice((0.01, 0.1, 1.0))}),
            ("clip", {"max_norm": "auto"}),
            ("clip", {"off": True}),
            ("perturb", {"std": dice.choice((1e-3, 1e-2))}),
            ("perturb", {"std": 1e-4, "target": "param"}),
            ("perturb", {"off": True}),
            ("snapshot", {}),
            ("rollback", {}),
        )
    )
    try:
        client.act(run, action, args, "storm")
    except Refusal:  # under the LR floor, or nothing to roll back to
        return 0
    return 1


def _judge(
    storm: Storm,
    journals: list[Journal],
    results: list[dict[str, Any]],
    commands: tuple[Command, ...],
    kills: int,
    link: BadLink,
    seconds: float,
) -> Verdict:
    votes = [{vote: (command, at) for command, vote, at in journal.applied} for journal in journals]
    apart = {
        command
        for each in votes
        for vote, (command, at) in each.items()
        if any(other.get(vote) != (command, at) for other in votes)
    }
    steps = {command: at for command, _, at in journals[0].applied}
    common = set.intersection(*(set(journal.bits) for journal in journals))
    differ = [step for step in sorted(common) if len({journal.bits[step] for journal in journals}) > 1]
    if len({(result["step"], result["bits"]) for result in results}) > 1:
        differ.append(max(result["step"] for result in results))
    everybody = tuple(range(storm.ranks))
    book = {c.id: (c.step, c.ranks_applied) for c in commands if c.state in ("applied", "judged")}
    truth = {command: (at[0], everybody) for command, at in steps.items()}
    return Verdict(
        commands=len(commands),
        states=dict(Counter(c.state for c in commands)),
        apart=sorted(apart, key=int),
        order_differs=len({tuple(journal.applied) for journal in journals}) > 1,
        bits_differ=differ,
        bits_compared=len(common) + 1,
        book_differs=sorted((c for c in book.keys() | truth.keys() if book.get(c) != truth.get(c)), key=int),
        kills=kills,
        lost=link.lost,
        carried=link.carried,
        steps=min(result["step"] for result in results),
        seconds=round(seconds, 1),
    )


def _read(path: Path) -> Journal:
    journal = Journal()
    for line in path.read_text().splitlines():
        kind, what, value = line.split()
        if kind == "applied":
            command, _, vote = what.partition("/")
            journal.applied.append((command, vote, tuple(map(int, value.split(",")))))
        else:
            journal.bits[int(what)] = value
    return journal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in asdict(Storm()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    storm = Storm(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as home:
        for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            os.environ[variable] = home
        os.environ["OPTWATCH_INSECURE"] = "1"
        verdict = run(storm, Path(home), lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(asdict(storm) | asdict(verdict) | {"sound": verdict.sound}))
    return 0 if verdict.sound else 1


if __name__ == "__main__":
    sys.exit(main())
