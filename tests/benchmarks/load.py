"""The daemon under 1,024 ranks: `python -m tests.benchmarks.load --shape replicas --seconds 600`.

replicas   16 parts of the tensors, 64 replicas of each: 16 ranks send everything, as the daemon tells them
shards     1,024 parts: every rank sends everything (500 tensors each, at the cadence given)
runs       every rank is a run of its own and sends everything: `--ranks 100`; the first one has the viewers,
           and all of them go wrong at once

Real sockets and a real daemon process; the ranks are simulated by some processes that send at the pace of
real ones, 10 steps a second each, while 50 viewers follow. Then the gradients grow, as before a divergence,
and the policy acts: told is after how many steps all ranks have applied it. Told besides: whether the pace
was held, scalars lost, per-tensor records that came and are stored, CPU and memory of the daemon and of the
simulation, what viewers got. How it goes is told every ten seconds, on stderr; the report comes in any case,
and says what fell short of what is asked.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from multiprocessing.synchronize import Event
from typing import Any

import msgspec
import numpy as np
import zmq

from optwatch.client import Client, DaemonError
from optwatch.client.link import connect, resolve
from optwatch.daemon.store import FILE
from optwatch.wire.places import state_dir
from tests.benchmarks.crowd import TOLD, Ballot, Crowd, start, stay
from tests.benchmarks.ingest import cpu, memory
from tests.daemons import DaemonProcess, home_of_its_own

TELL_EVERY = 10.0
JOINING = 120.0
SETTLING = 60.0
ACTING = 60.0
"""Seconds that all ranks may take to join, what was sent to be acknowledged, the policy to act."""
MOST_MEMORY = 1024.0
MOST_CORE = 1.0
LEAST_CHANGES = 3.5
"""Of the four a second that are published, what every viewer gets at least."""
PACE = 0.99
"""Of the steps that were asked for, the least that the simulation must have made for the figures to count."""


class _Delta(msgspec.Struct, tag="delta"):
    """A `Delta`, as far as a viewer that only counts them needs it."""

    seq: int


def watch(address: str, run: str, viewers: int, ended: Event, told: Any) -> None:
    """Viewers that follow the run. `told`: for each of them, the changes that it got and those it missed."""
    stay()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Client(address, timeout=JOINING) as client:
        publish = client.greeting.publish
    key = resolve(address)[1]
    decoder = msgspec.msgpack.Decoder(_Delta)
    poller = zmq.Poller()
    numbers, last = {}, [0] * viewers
    for number in range(viewers):
        socket = connect(context, zmq.SUB, publish, key)
        socket.setsockopt(zmq.SUBSCRIBE, run.encode())
        poller.register(socket, zmq.POLLIN)
        numbers[socket] = number
    while not ended.is_set():
        for socket, _ in poller.poll(200):
            number = numbers[socket]
            seq = decoder.decode(socket.recv_multipart()[1]).seq
            told[2 * number] += 1
            told[2 * number + 1] += max(seq - last[number] - 1, 0) if last[number] else 0
            last[number] = seq
    context.destroy(linger=0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("replicas", "shards", "runs"), default="replicas")
    parser.add_argument("--ranks", type=int, default=1_024)
    parser.add_argument("--parts", type=int, default=16, help="of the tensors, in the shape replicas")
    parser.add_argument("--tensors", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10.0, help="steps per second of every rank")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before it is measured")
    parser.add_argument("--sample-every", type=int, default=100, help="steps between per-tensor records")
    parser.add_argument("--senders", type=int, default=2, help="processes that simulate the ranks")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cut short, it reports all the same
    with home_of_its_own() as home:
        # In a session of its own: what ends this program early does not end the daemon that it reports of.
        daemon = DaemonProcess(home, "--mode", "auto", prefix=("setsid",)).start()
        try:
            report = Load(daemon, args).report()
        finally:
            daemon.kill()
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:24} {value}")
    return 1 if report["short"] else 0


class Ended(Exception):
    """Nothing more can be measured."""


class Load:
    """One measurement. What is told in the end is what there is, however far it came."""

    def __init__(self, daemon: DaemonProcess, args: argparse.Namespace) -> None:
        assert daemon.process is not None
        self._daemon = daemon
        self._args = args
        self._pid = daemon.process.pid
        self._crowd = Crowd(
            address=daemon.address,
            run=os.urandom(16).hex(),
            ranks=args.ranks,
            parts={"replicas": args.parts, "shards": args.ranks, "runs": 1}[args.shape],
            tensors=args.tensors,
            rate=args.rate,
            sample_every=args.sample_every,
            settling=SETTLING,
            apart=args.shape == "runs",
        )
        self._run = self._crowd.place(0)[0]
        """The run that is looked at."""
        spawn = multiprocessing.get_context("spawn")
        self._begin, self._wrong, self._ended = spawn.Event(), spawn.Event(), spawn.Event()
        self._changes = spawn.Array("q", 2 * max(args.viewers, 1))
        self._ballot = Ballot(spawn)  # as long as the processes use it
        self._senders, self._told = start(
            self._crowd, args.senders, self._ballot, self._begin, self._wrong, self._ended
        )
        given = daemon.address, self._run, args.viewers, self._ended, self._changes
        self._viewers = spawn.Process(target=watch, args=given, daemon=True)
        self._out: dict[str, Any] = {}
        self._short: list[str] = []
        self._most = 0.0
        self._rows: list[tuple[float, float, float]] = []
        """At each look: seconds, the daemon's memory, its CPU seconds."""

    def report(self) -> dict[str, Any]:
        """Measure, as far as nothing ends it before."""
        try:
            self._join()
            self._measure()
            self._act()
        except KeyboardInterrupt:
            self._short.append("it was cut short")
        except DaemonError as error:
            self._short.append(f"the daemon did not answer: {error}")
        except Ended as error:
            self._short.append(str(error))
        self._wrong.clear()
        self._ended.set()
        try:
            self._settle()
            self._sum_up()
        finally:
            for process in (*self._senders, self._viewers):
                if process.ident is not None:
                    process.join(5)
                    process.kill()
        return {"short": self._short, **self._out}

    def _join(self) -> None:
        began = time.monotonic()
        self._wait("joining", JOINING, lambda: self._total("joined") >= self._crowd.ranks)
        if (joined := int(self._total("joined"))) < self._crowd.ranks:
            raise Ended(f"{joined} of {self._crowd.ranks} ranks had joined after {JOINING:g} s")
        self._out["joined in (s)"] = round(time.monotonic() - began, 1)
        self._begin.set()
        if self._args.viewers:
            self._viewers.start()
            self._wait("looking", JOINING, lambda: min(self._changes[::2]) > 0)

    def _measure(self) -> None:
        self._wait("warming up", self._args.warm_up, lambda: False)
        began, used, simulated = time.monotonic(), cpu(self._pid), self._total("cpu")
        steps, changes = self._slowest(), list(self._changes)
        try:
            self._wait("measuring", self._args.seconds, lambda: False)
        finally:
            took = time.monotonic() - began
            core, pace = (cpu(self._pid) - used) / took, (self._slowest() - steps) / took
            got = np.array(self._changes)[::2] - np.array(changes)[::2]
            missed = np.array(self._changes)[1::2] - np.array(changes)[1::2]
            self._out |= {
                "measured for (s)": round(took, 1),
                "daemon, cores": round(core, 3),
                "daemon, most MiB": round(self._most),
                "daemon, MiB over time": [
                    round(m) for _, m, _ in self._rows[:: max(len(self._rows) // 12, 1)]
                ],
                "simulation, cores": round((self._total("cpu") - simulated) / took, 3),
                "steps a second": round(pace, 3),
                "behind at most (s)": round(max(self._each("behind")), 2),
                "load of the host": round(os.getloadavg()[0], 1),
            }
            if core > MOST_CORE:
                self._short.append(f"the daemon took {core:.2f} cores of {MOST_CORE:g}")
            if pace < PACE * self._crowd.rate:
                self._short.append(f"the simulation made {pace:.2f} of {self._crowd.rate:g} steps a second")
            if self._args.viewers:
                self._out["viewers, changes a second"] = [
                    round(float(n) / took, 2) for n in (got.min(), got.max())
                ]
                self._out["viewers, changes missed"] = int(missed.sum())
                if got.min() / took < LEAST_CHANGES or missed.any():
                    self._short.append(f"a viewer got {got.min() / took:.2f} changes a second of 4")

    def _act(self) -> None:
        """The policy's first command after the gradients began to grow, and the finding it came of."""
        with Client(self._daemon.address, timeout=SETTLING) as client:
            before = {command.id for command in client.commands(self._run)}
            began = self._slowest()
            self._wrong.set()
            command = None

            def applied() -> bool:
                nonlocal command
                new = [c for c in client.commands(self._run) if c.id not in before]
                command = new[0] if new else None
                return command is not None and command.state not in ("proposed", "sent", "scheduled")

            self._wait("acting", ACTING, applied, every=0.5)
            findings = {found.id: found for found in client.findings(self._run)}
        finding = findings.get(command.finding or 0) if command is not None else None
        limit = 5 if self._crowd.world_size <= 4 else 15
        if command is None or finding is None or command.step is None:
            state = "none" if command is None else f"{command.action} {command.state}: {command.reason}"
            self._short.append(
                f"no command was applied {ACTING:g} s after the gradients began to grow: {state}"
            )
            return
        took = command.step - finding.step
        self._out["finding to command (steps)"] = took
        self._out["the command"] = (
            f"{finding.kind} found at step {finding.step}, onset {finding.onset_step}, grown from about "
            f"{began:.0f}; {command.action} {command.state} at {command.step} "
            f"on {len(command.ranks_applied)} ranks"
        )
        if command.state not in ("applied", "judged") or len(command.ranks_applied) < self._crowd.world_size:
            self._short.append(f"the command is {command.state}: {command.reason}")
        if took > limit and not self._crowd.apart:
            self._short.append(f"{took} steps from finding to command, {limit} at most are asked for")

    def _settle(self) -> None:
        """Until all that was sent is acknowledged."""
        began = time.monotonic()
        try:
            self._wait("settling", SETTLING + 10, lambda: not any(each.is_alive() for each in self._senders))
        except KeyboardInterrupt:
            self._short.append("it was cut short while messages were not acknowledged")
        self._out["acknowledged after (s)"] = round(time.monotonic() - began, 1)
        if waiting := int(self._total("waiting")):
            self._short.append(f"{waiting} messages were not acknowledged after {SETTLING:g} s")

    def _sum_up(self) -> None:
        try:
            with Client(self._daemon.address, timeout=SETTLING) as client:
                gaps = client.status(self._run).gaps
        except (DaemonError, KeyboardInterrupt) as error:
            self._short.append(f"gaps are not known: {error!r}")
            gaps = ()
        self._daemon.stop()
        sent, late = int(self._total("rows")), int(self._total("late"))
        rows, records, short = stored(self._crowd, self._each("step"))
        senders = self._crowd.ranks if self._crowd.apart else self._crowd.parts
        wanted = senders * int(min(self._each("step")) // self._crowd.sample_every)
        self._out |= {
            "scalars sent, stored": [sent, rows],
            "steps": [int(step) for step in self._each("step")],
            "records sent, stored": [int(self._total("samples")), records],
            "records thinned": int(self._total("thinned")),
            "proposals too late": late,
        }
        if gaps or short or sent != rows:
            self._short.append(f"{sent - rows} scalars lost, of {short} ranks; gaps {gaps[:3]}")
        if records < wanted:
            thinned = int(self._total("thinned"))
            self._short.append(
                f"{wanted - records} of {wanted} records are not stored, {thinned} were thinned"
            )
        if self._most > MOST_MEMORY:
            self._short.append(f"the daemon had {self._most:.0f} MiB, {MOST_MEMORY:g} at most are asked for")

    # --- while it runs --------------------------------------------------------------------------------

    def _wait(self, what: str, seconds: float, enough: Any, every: float = 1.0) -> None:
        """Wait for so long at most, and tell how it goes."""
        began = told = time.monotonic()
        used = cpu(self._pid)
        while (now := time.monotonic()) < began + seconds and not enough():
            if not self._ended.is_set() and not all(each.is_alive() for each in self._senders):
                raise Ended("a process of ranks ended by itself")
            self._most = max(self._most, memory(self._pid))
            if now - told >= TELL_EVERY:
                self._rows.append((now, memory(self._pid), cpu(self._pid)))
                self._tell(what, now - began, (cpu(self._pid) - used) / (now - told))
                told, used = now, cpu(self._pid)
            time.sleep(min(every, max(began + seconds - now, 0)))

    def _tell(self, what: str, at: float, core: float) -> None:
        print(
            f"{what} {at:4.0f} s: {self._total('joined'):.0f} ranks at step {self._slowest():.0f}, "
            f"{max(self._each('behind')):.1f} s behind at most, {self._total('waiting'):.0f} messages wait; "
            f"daemon {memory(self._pid):.0f} MiB, {core:.2f} cores; "
            f"{np.array(self._changes)[::2].sum()} changes seen",
            file=sys.stderr,
            flush=True,
        )

    def _each(self, name: str) -> list[float]:
        return [told[TOLD.index(name)] for told in self._told]

    def _total(self, name: str) -> float:
        return sum(self._each(name))

    def _slowest(self) -> float:
        return min(self._each("step"))


def stored(crowd: Crowd, steps: list[float]) -> tuple[int, int, int]:
    """Rows of scalars and of per-tensor records in the store, and the ranks that lack some of their steps."""
    share = -(-crowd.ranks // len(steps))
    connection = sqlite3.connect(state_dir() / FILE)
    query = (
        "SELECT run, rank, SUM(rows), MIN(first), MAX(last) FROM chunk WHERE kind = 's' GROUP BY run, rank"
    )
    found = {(run, rank): (rows, first, last) for run, rank, rows, first, last in connection.execute(query)}
    wanted = {crowd.place(n): (steps[n // share], 1, steps[n // share]) for n in range(crowd.ranks)}
    (records,) = connection.execute("SELECT SUM(rows) FROM chunk WHERE kind = 't'").fetchone()
    connection.close()
    short = sum(found.get(place) != there for place, there in wanted.items())
    return sum(rows for rows, _, _ in found.values()), records or 0, short


if __name__ == "__main__":
    sys.exit(main())
