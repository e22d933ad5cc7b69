"""The daemon under 1,024 ranks: `python -m tests.benchmarks.load --shape replicas --seconds 600`.

replicas   16 parts of the tensors, 64 replicas of each: 16 ranks send everything, as the daemon tells them
shards     1,024 parts: every rank sends everything (500 tensors each, at the cadence given)

Real sockets and a real daemon process; the ranks are simulated by some processes that send at the pace of
real ones, 10 steps a second each, while 50 viewers follow. Then the gradients grow, as before a divergence,
and the policy acts: told is after how many steps all ranks have applied it. Told besides: scalars lost,
per-tensor records that came and are stored, the daemon's CPU and memory over time, what viewers got.
"""

import argparse
import multiprocessing
import os
import signal
import sqlite3
import time
from multiprocessing.synchronize import Event
from queue import Empty
from typing import Any

import numpy as np
import zmq

from optwatch.client import Client, DaemonError
from optwatch.client.link import connect, resolve
from optwatch.daemon.store import FILE
from optwatch.wire.frames import publication_decoder, unpack
from optwatch.wire.messages import Prepare
from optwatch.wire.places import state_dir
from optwatch.wire.requests import Delta
from tests.benchmarks.ingest import COLUMNS, Rank, cpu, memory
from tests.daemons import DaemonProcess, home_of_its_own
from tests.peers import AgentPeer

SETTLING = 120.0
"""Seconds that what was sent may take to be acknowledged, when nothing more is sent."""
LOSS, NORM = COLUMNS.index("loss"), COLUMNS.index("grad_norm")


def send(
    address: str,
    run: str,
    numbers: range,
    args: argparse.Namespace,
    wrong: Event,
    ended: Event,
    told: "multiprocessing.Queue[Any]",
) -> None:
    """Some of the ranks, in a process of their own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; what it ends is said by `ended`
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * len(numbers) + 16)
    shards = args.ranks if args.shape == "shards" else args.parts
    ranks: list[Rank] = []
    for number in numbers:
        agent = AgentPeer(
            address,
            run=run,
            rank=number,
            world_size=args.ranks,
            columns=COLUMNS,
            tensors=args.tensors,
            context=context,
        )
        ranks.append(Rank(agent, number % shards, shards, obeys=True))
        agent.greet()
    told.put("greeted")
    pending: dict[str, tuple[Rank, Prepare]] = {}
    noise = np.random.default_rng(numbers.start)
    sampled = late = step = 0
    behind = 0.0
    grown = 1.0
    began = time.monotonic()
    while not ended.is_set():
        step += 1
        grown = min(grown * 3, 1e6) if wrong.is_set() else 1.0
        values = noise.normal(1.0, 0.01, size=(1, len(COLUMNS)))
        values[:, LOSS] += np.exp(-step / 200) + (grown - 1) * 0.1
        values[:, NORM] *= grown
        full = step % args.sample_every == 0
        for rank in ranks:
            sampled += full and not rank.reduced
            rank.send(values, full, time.monotonic())
            for prepare in rank.agent.prepares:
                pending[rank.agent.session + prepare.vote] = rank, prepare
                in_time = step < prepare.steps[0]
                late += not in_time
                rank.agent.report(prepare, "pending" if in_time else "aborted")
            rank.agent.prepares.clear()
        for name, (rank, prepare) in list(pending.items()):
            if step >= prepare.steps[0]:
                rank.agent.report(prepare, "applied", step=prepare.steps[0])
                del pending[name]
        behind = max(behind, time.monotonic() - began - step / args.rate)
        time.sleep(max(began + step / args.rate - time.monotonic(), 0))
    end = time.monotonic() + SETTLING
    while (waiting := sum(len(rank.agent.held) for rank in ranks)) and time.monotonic() < end:
        for rank in ranks:
            rank.listen()
        time.sleep(0.01)
    told.put((step * len(ranks), sampled, late, waiting, behind))
    for rank in ranks:
        rank.agent.close(linger=0)


def watch(address: str, run: str, viewers: int, ended: Event, told: "multiprocessing.Queue[Any]") -> None:
    """Viewers that follow the run; told is the least and the most that one got a second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Client(address, timeout=120) as client:
        publish = client.greeting.publish
    key = resolve(address)[1]
    poller = zmq.Poller()
    got: dict[Any, int] = {}
    for _ in range(viewers):
        socket = connect(context, zmq.SUB, publish, key)
        socket.setsockopt(zmq.SUBSCRIBE, run.encode())
        poller.register(socket, zmq.POLLIN)
        got[socket] = 0
    began = time.monotonic()
    while not ended.is_set():
        for socket, _ in poller.poll(200):
            message, _ = unpack(socket.recv_multipart()[1:], publication_decoder)
            got[socket] += isinstance(message, Delta)
    took = time.monotonic() - began
    told.put((min(got.values()) / took, max(got.values()) / took))
    context.destroy(linger=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("replicas", "shards"), default="replicas")
    parser.add_argument("--ranks", type=int, default=1_024)
    parser.add_argument("--parts", type=int, default=16, help="of the tensors, in the shape replicas")
    parser.add_argument("--tensors", type=int, default=500)
    parser.add_argument("--rate", type=float, default=10.0, help="steps per second of every rank")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before it is measured")
    parser.add_argument("--sample-every", type=int, default=100, help="steps between per-tensor records")
    parser.add_argument("--senders", type=int, default=2, help="processes that simulate the ranks")
    parser.add_argument("--viewers", type=int, default=50)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cut short, it reports all the same
    with home_of_its_own() as home:
        daemon = DaemonProcess(home, "--mode", "auto").start()
        try:
            measure(daemon, args)
        finally:
            daemon.kill()


def measure(daemon: DaemonProcess, args: argparse.Namespace) -> None:
    assert daemon.process is not None
    pid, run = daemon.process.pid, os.urandom(16).hex()
    spawn = multiprocessing.get_context("spawn")
    wrong, ended, told, seen = spawn.Event(), spawn.Event(), spawn.Queue(), spawn.Queue()
    share = -(-args.ranks // args.senders)
    parts = [range(first, min(first + share, args.ranks)) for first in range(0, args.ranks, share)]
    senders = [
        spawn.Process(target=send, args=(daemon.address, run, part, args, wrong, ended, told), daemon=True)
        for part in parts
    ]
    for process in senders:
        process.start()
    for _ in senders:
        assert told.get(timeout=600) == "greeted"
    viewers = spawn.Process(target=watch, args=(daemon.address, run, args.viewers, ended, seen), daemon=True)
    viewers.start()
    time.sleep(args.warm_up)
    before, began, most = cpu(pid), time.monotonic(), 0.0
    command = finding = None
    try:
        for tenth in range(10):
            time.sleep(max(began + args.seconds * (tenth + 1) / 10 - time.monotonic(), 0))
            most = max(most, memory(pid))
            at = time.monotonic() - began
            share_of_core = (cpu(pid) - before) / at
            print(f"{at:6.0f} s  {memory(pid):6.0f} MiB  {100 * share_of_core:5.1f} % of a core", flush=True)
        with Client(daemon.address, timeout=SETTLING) as client:
            wrong.set()
            command, finding = _acted(client, run)
    except KeyboardInterrupt:
        print("cut short: told is what there is", flush=True)
    wrong.clear()
    ended.set()
    results = _told(told, len(senders))
    watched = _told(seen, 1)
    try:
        with Client(daemon.address, timeout=SETTLING) as client:
            gaps = str(client.status(run).gaps)
    except DaemonError as error:
        gaps = f"not known: {error}"
    for process in (*senders, viewers):
        process.join(30)
    daemon.stop()
    rows, records = _stored(run)
    sent, sampled, late, waiting = (sum(each[at] for each in results) for at in range(4))
    behind = max((each[-1] for each in results), default=float("nan"))
    if len(results) < len(senders):
        print(f"only {len(results)} of {len(senders)} senders told what they had sent")
    print(f"scalars: {sent} sent, {rows} stored, {sent - rows} lost; gaps {gaps}")
    if waiting:
        print(f"{waiting} messages were not acknowledged after {SETTLING:g} s")
    print(f"per-tensor records: {sampled} sent, {records} stored")
    print(f"memory at most {most:.0f} MiB; the senders were {behind:.1f} s behind their pace at most")
    for slowest, quickest in watched:
        print(f"{args.viewers} viewers got {slowest:.2f} to {quickest:.2f} changes a second")
    if command is None or finding is None:
        print("no command came of the finding" if finding else "nothing was found")
    else:
        print(
            f"{finding.kind} at step {finding.step} (onset {finding.onset_step}) → {command.action} "
            f"{command.state} at step {command.step}: {(command.step or 0) - finding.step} steps, "
            f"{late} proposals came late"
        )


def _told(queue: "multiprocessing.Queue[Any]", number: int) -> list[Any]:
    """What processes report in the end, of those that do before it is cut short."""
    results: list[Any] = []
    try:
        while len(results) < number:
            results.append(queue.get(timeout=2 * SETTLING))
    except (Empty, KeyboardInterrupt):
        print("not all processes have reported", flush=True)
    return results


def _acted(client: Client, run: str) -> tuple[Any, Any]:
    """The policy's first command and the finding it came of, as far as they come within half a minute."""
    end = time.monotonic() + 30
    command = finding = None
    while time.monotonic() < end and (command is None or command.state != "applied"):
        commands = client.commands(run)
        findings = {found.id: found for found in client.findings(run)}
        command = commands[0] if commands else None
        finding = findings.get(command.finding or 0) if command else next(iter(findings.values()), None)
        time.sleep(0.1)
    return command, finding


def _stored(run: str) -> tuple[int, int]:
    """Rows of scalars and of per-tensor records in the store."""
    connection = sqlite3.connect(state_dir() / FILE)
    (rows,), (records,) = (
        connection.execute("SELECT SUM(rows) FROM chunk WHERE run = ? AND kind = ?", (run, kind)).fetchone()
        for kind in ("s", "t")
    )
    return rows or 0, records or 0


if __name__ == "__main__":
    main()
