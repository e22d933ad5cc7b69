"""The rescue benchmark: what is won back from a fault, and what a healthy run loses, by who acts.

    python -m tests.benchmarks.rescue record FILE [--split test] [--seeds 2] [--minutes 40] [--arms ARM …]
    python -m tests.benchmarks.rescue report FILE [--split test] [--json FILE] [--plot PNG]

`record` trains each case under each arm, in real processes with a real daemon in mode auto, and adds a line
a training to FILE (outside the repository). What is there already is not trained again: several sittings
add to one result. `report` compares the arms. Development seeds count from 0, test seeds from 1,010; the
policy is developed on the first alone. Needs the dependency group `optimizers`.
"""

import argparse
import multiprocessing as mp
import os
import random
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from optwatch_agent import compiled, kernels
from tests.benchmarks.detection.trainings import MODELS
from tests.benchmarks.rescue.arms import ALONE, ARMS, WATCHED, write_policies
from tests.benchmarks.rescue.courses import HEALTHY, OPTIMIZERS, REPAIRABLE, STEPS, Case, Course
from tests.benchmarks.rescue.report import Ended, Report
from tests.daemons import DaemonProcess, set_home

SEEDS = {"dev": 0, "test": 1_010}
"""The first of each. Those from 1,000 on were looked at before the policy was ready."""
PACE = 0.005
"""Seconds that a step takes at least where a daemon watches: a step of a real training is seldom shorter."""
SNAPSHOTS = 64 * 2**20
"""Host bytes that the agent may keep snapshots in."""
PER_LEVEL = 20
"""Steps whose mean loss is one number of the curve that is kept."""


def cases(split: str, seeds: int) -> Iterator[Case]:
    """A balanced subset: each fault meets every model and every optimizer, each control every optimizer.

    Over one seed a fault is trained with 10 of the 20 pairs of a model and an optimizer, the other ten
    come with the next; a control with 5.
    """
    models = list(MODELS)
    for seed in range(SEEDS[split], SEEDS[split] + seeds):
        for i, what in enumerate(REPAIRABLE):
            for j, optimizer in enumerate(OPTIMIZERS):
                for half in (0, 2):
                    yield Case(what, models[(i + j + seed + half) % 4], optimizer, seed)
        for i, what in enumerate(HEALTHY):
            for j, optimizer in enumerate(OPTIMIZERS):
                yield Case(what, models[(i + j + seed) % 4], optimizer, seed)


def todo(split: str, seeds: int, arms: Collection[str], done: set[tuple[str, str]]) -> list[tuple[Case, str]]:
    """What is left to train: each case under each arm, and the healthy twin of each under `nothing`."""
    wanted: dict[tuple[Case, str], None] = {}
    shuffled = list(cases(split, seeds))
    random.Random(0).shuffle(shuffled)  # so that a sitting that ends early leaves a balanced part
    for case in shuffled:
        if "nothing" in arms:
            wanted[case.twin, "nothing"] = None
        for arm in arms:
            wanted[case, arm] = None
    return [each for each in wanted if (each[0].name, each[1]) not in done]


def read(path: Path) -> list[Ended]:
    """The trainings that are recorded; a line torn by a kill is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found.append(msgspec.json.decode(line, type=Ended))
        except msgspec.DecodeError:
            continue
    return found


def train(case: Case, arm: str, daemons: dict[str, tuple[str, Path]]) -> Ended:
    """One training under one arm; of each policy's daemon, its address and its home."""
    course = Course(case)
    if arm in ALONE:
        return _ended(case, arm, list(course.steps(ALONE[arm](course))))
    import optwatch
    from optwatch.client import Client

    address, home = daemons[WATCHED[arm](case)]
    set_home(home)
    run = f"{case.name}/{arm}"
    watch = optwatch.attach(
        course.optimizer, model=course.model, name=run, daemon=address, allow="all", snapshots=SNAPSHOTS
    )
    rows = []
    due = time.monotonic()
    for step, loss, held in course.steps(lambda step, loss: None):
        rows.append((step, loss, held))
        if held is not None:
            watch.log(val_loss=held)
        due = max(due + PACE, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))
    watch.detach()
    with Client(address, timeout=30) as client:
        commands = tuple(client.commands(run))
        findings = tuple(client.findings(run))
    return _ended(case, arm, rows, commands, findings)


def _ended(case: Case, arm: str, rows: list[Any], commands: Any = (), findings: Any = ()) -> Ended:
    losses = [loss for _, loss, _ in rows]
    held = [value for _, _, value in rows if value is not None]
    return Ended(
        case=case.name,
        arm=arm,
        held_out=held[-1],
        curve=[sum(losses[i : i + PER_LEVEL]) / PER_LEVEL for i in range(0, STEPS, PER_LEVEL)],
        commands=commands,
        findings=[(f.kind, f.severity, f.step) for f in findings],
    )


def _work(tasks: Any, results: Any, daemons: dict[str, tuple[str, Path]]) -> None:
    """A worker process: train what comes until nothing comes."""
    import torch

    torch.set_num_threads(1)
    for case, arm in iter(tasks.get, None):
        try:
            results.put(train(case, arm, daemons))
        except Exception as error:  # one training that fails leaves the others alone, and is tried again
            results.put(f"{case.name} under {arm}: {error!r}")


def record(path: Path, split: str, seeds: int, arms: Collection[str], minutes: float, jobs: int) -> None:
    """Train what is not recorded yet, until the minutes are over."""
    left = todo(split, seeds, arms, {(ended.case, ended.arm) for ended in read(path)})
    seconds = sum(5 if arm in WATCHED else 2 for _, arm in left)
    print(
        f"{len(left)} trainings to go, about {seconds / jobs / 60:.0f} minutes with {jobs} at once",
        flush=True,
    )
    end = time.monotonic() + 60 * minutes
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(Path(folder, "cache"))}
        if kernels.can_build():
            kernels.build(compiled.directory())  # as on a machine that has trained before
        running: dict[str, DaemonProcess] = {}
        for name, policy in write_policies(Path(folder)).items():
            set_home(Path(folder, name))
            options = ("--policy", str(policy)) if policy else ()
            running[name] = DaemonProcess(Path(folder, name), "--mode", "auto", *options).start()
        daemons = {name: (daemon.address, Path(folder, name)) for name, daemon in running.items()}
        tasks, results = context.Queue(), context.Queue()
        workers = [context.Process(target=_work, args=(tasks, results, daemons)) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        waiting, busy, finished = iter(left), 0, 0
        try:
            with path.open("ab") as file:
                while True:
                    while busy < jobs and time.monotonic() < end and (task := next(waiting, None)):
                        tasks.put(task)
                        busy += 1
                    if not busy:
                        break
                    ended = results.get(timeout=300)
                    busy, finished = busy - 1, finished + 1
                    if isinstance(ended, str):
                        print(ended, flush=True)
                        continue
                    file.write(msgspec.json.encode(ended) + b"\n")
                    file.flush()
                    if finished % 50 == 0:
                        print(f"{finished} of {len(left)}", flush=True)
        finally:
            for _ in workers:
                tasks.put(None)
            for worker in workers:
                worker.join(60)
            for daemon in running.values():
                daemon.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.rescue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("record", "report"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--split", choices=SEEDS, default="dev")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=ARMS, help="record these alone; some need no daemon"
    )
    parser.add_argument("--json", type=Path, help="also write the report's numbers to this file")
    parser.add_argument("--plot", type=Path, help="also draw them (matplotlib)")
    options = parser.parse_args()
    if options.what == "record":
        record(options.file, options.split, options.seeds, options.arms, options.minutes, options.jobs)
        return
    low = SEEDS[options.split]
    report = Report([e for e in read(options.file) if low <= int(e.case.rsplit("/", 1)[1]) < low + 1000])
    report.show()
    if options.plot:
        report.plot(options.plot)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report.numbers())) + b"\n")
