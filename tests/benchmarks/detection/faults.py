"""The fault-injection benchmark: real trainings with faults and healthy controls, judged by the answer key.

    python -m tests.benchmarks.detection.faults record DIR [--split test] [--seeds 6] [--minutes 30]
        [--healthy]
    python -m tests.benchmarks.detection.faults report DIR [--split test] [--json FILE] [--plot PNG]

`record` trains, 1-5 s each on one core, and keeps what an agent saw in DIR (outside the repository). What
is there already is not trained again: several sittings add to one result. `report` gives the recordings to
the detectors and to the published rules. Development seeds count from 0, test seeds from 1,000; thresholds
are tuned on the first alone.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding
from tests.benchmarks.detection.answer_key import CONTROLS, FAULTS, HARM, Answer
from tests.benchmarks.detection.recording import Recording
from tests.benchmarks.detection.rules import RULES
from tests.benchmarks.detection.trainings import FROM_START, INJECTED, MODELS, STEPS, Cell, Training

SEEDS = {"dev": 0, "test": 1_000}
WARNED = 3
"""Steps from the injection to the first non-finite value from which a divergence can be told before it."""


@dataclass(frozen=True)
class Judged:
    """One training, and what the detectors and the published rules said of it."""

    cell: Cell
    held_out: float
    non_finite: int | None
    findings: tuple[Finding, ...]
    rules: dict[str, tuple[int, ...]]
    """Of each rule, the steps at which it alarmed."""

    @property
    def alarms(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity in ALARMS]

    @property
    def start(self) -> int:
        """The step at which the fault began; a fault of the set-up may be told before the first."""
        return 0 if self.cell.what in FROM_START else INJECTED

    def hit(self, answer: Answer) -> Finding | None:
        """The first finding that the key calls right."""
        told = [f for f in self.findings if f.severity != "watch" and f.step >= self.start]
        return min((f for f in told if f.kind in answer.kinds), key=lambda f: f.step, default=None)


def cells(split: str, seeds: int) -> Iterator[Cell]:
    """All faults and controls over all models, a whole round before the next seed, each in random order:
    a sitting that ends early leaves a balanced part."""
    first = SEEDS[split]
    for seed in range(first, first + seeds):
        turn = [Cell(model, what, seed) for what in (*CONTROLS, *FAULTS) for model in MODELS]
        random.Random(seed).shuffle(turn)
        # The healthy twins first: without them nobody knows what a fault did.
        yield from sorted(turn, key=lambda cell: cell.what != "plain")


def place(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.model}.{cell.what}.{cell.seed}.npz"


def detect(recording: Recording, name: str) -> tuple[Finding, ...]:
    """What the detectors find, given the recording as a daemon would get it."""
    panel = Panel(name)
    panel.setup([recording.setup])
    for step in recording.marks:
        panel.mark(step)
    for chunk in recording.chunks():
        panel.update(chunk)
    return panel.findings


def judge(path: Path) -> Judged:
    """Read a recording and have it judged."""
    model, what, seed = path.stem.split(".")
    cell = Cell(model, what, int(seed))
    recording = Recording.load(path)
    return Judged(
        cell,
        recording.held_out,
        recording.first_non_finite,
        detect(recording, cell.name),
        {name: rule(recording.points) for name, rule in RULES.items()},
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, hits / of
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share(hits: int, of: int) -> str:
    low, high = wilson(hits, of)
    return f"{hits / of:6.1%} [{low:.1%}, {high:.1%}] {hits}/{of}" if of else "-"


class Report:
    """Recall, time to detect and first cause by fault; false alarms by control; the same of the rules."""

    def __init__(self, judged: list[Judged]) -> None:
        twins = {(j.cell.model, j.cell.seed): j.held_out for j in judged if j.cell.what == "plain"}
        self.harmed = [
            j
            for j in judged
            if j.cell.what in FAULTS
            and (twin := twins.get((j.cell.model, j.cell.seed))) is not None
            and not j.held_out <= HARM * twin
        ]
        self.healthy = [j for j in judged if j.cell.what in CONTROLS]
        self.alarms = sum(len(j.alarms) for j in self.healthy)

    def fault(self, what: str) -> dict[str, Any]:
        """One fault's runs: how many were found, with the right first cause, and after how many steps."""
        runs = [j for j in self.harmed if j.cell.what == what]
        hits = [(j, f) for j in runs if (f := j.hit(FAULTS[what])) is not None]
        delays = sorted(f.step - j.start for j, f in hits)
        return {
            "harmed": len(runs),
            "found": len(hits),
            "cause_right": sum(bool(f.causes) and f.causes[0].cause in FAULTS[what].causes for _, f in hits),
            "median_delay": delays[len(delays) // 2] if delays else None,
            "missed": [j.cell.name for j in runs if j not in [hit for hit, _ in hits]],
        }

    def pooled(self, chosen: Callable[[Answer], bool]) -> tuple[int, int, int]:
        """Harmed, found and right of cause over the faults that are chosen."""
        rows = [self.fault(what) for what, answer in FAULTS.items() if chosen(answer)]
        return (
            sum(r["harmed"] for r in rows),
            sum(r["found"] for r in rows),
            sum(r["cause_right"] for r in rows),
        )

    def before_non_finite(self) -> tuple[int, int]:
        """Of divergences that turned non-finite with warning enough, how many were told before."""
        late = [
            j
            for j in self.harmed
            if FAULTS[j.cell.what].diverges
            and j.non_finite is not None
            and j.non_finite - max(j.start, 1) >= WARNED
        ]
        told = [j for j in late if (f := j.hit(FAULTS[j.cell.what])) and f.step < (j.non_finite or 0)]
        return len(told), len(late)

    def rule(self, name: str) -> dict[str, Any]:
        """A published rule: divergences it alarms on after they began, healthy runs it alarms on."""
        diverged = [j for j in self.harmed if FAULTS[j.cell.what].diverges]
        first = [next((s for s in j.rules[name] if s >= j.start), None) for j in diverged]
        delays = sorted(s - j.start for j, s in zip(diverged, first, strict=True) if s is not None)
        return {
            "diverged": len(diverged),
            "found": len(delays),
            "median_delay": delays[len(delays) // 2] if delays else None,
            "healthy": len(self.healthy),
            "healthy_alarmed": sum(bool(j.rules[name]) for j in self.healthy),
        }

    def numbers(self) -> dict[str, Any]:
        """All of it, for a file."""
        told, late = self.before_non_finite()
        return {
            "faults": {what: self.fault(what) for what in FAULTS},
            "controls": {
                what: {
                    "runs": len(runs := [j for j in self.healthy if j.cell.what == what]),
                    "alarmed": sum(bool(j.alarms) for j in runs),
                    "kinds": sorted({f.kind for j in runs for f in j.alarms}),
                    "which": [j.cell.name for j in runs if j.alarms],
                }
                for what in CONTROLS
            },
            "before_non_finite": {"told": told, "of": late},
            "healthy": len(self.healthy),
            "healthy_alarmed": sum(bool(j.alarms) for j in self.healthy),
            "healthy_steps": len(self.healthy) * STEPS,
            "alarms": self.alarms,
            "rules": {name: self.rule(name) for name in RULES},
        }

    def show(self) -> None:
        """Print it as tables."""
        print(f"{'fault':<20} {'found':<32} {'first cause right':<32} median steps to detect")
        for what in FAULTS:
            row = self.fault(what)
            delay = "-" if row["median_delay"] is None else row["median_delay"]
            found = share(row["found"], row["harmed"])
            print(f"{what:<20} {found:<32} {share(row['cause_right'], row['found']):<32} {delay}")
        for label, chosen in (
            ("divergence kinds", lambda answer: answer.diverges),
            ("other kinds", lambda answer: not answer.diverges and answer.floor is not None),
            ("all kinds", lambda answer: answer.floor is not None),
        ):
            harmed, found, right = self.pooled(chosen)
            print(f"{label:<20} {share(found, harmed):<32} {share(right, found):<32}")
        print(f"{'before non-finite':<20} {share(*self.before_non_finite())}")
        print(f"\n{'control':<24} runs with an alarm")
        for what in CONTROLS:
            runs = [j for j in self.healthy if j.cell.what == what]
            kinds = sorted({found.kind for j in runs for found in j.alarms})
            print(f"{what:<24} {share(sum(bool(j.alarms) for j in runs), len(runs))}  {', '.join(kinds)}")
        print(f"{'all':<24} {share(sum(bool(j.alarms) for j in self.healthy), len(self.healthy))}")
        print(f"{self.alarms} alarms in {len(self.healthy) * STEPS:,} healthy steps")
        print(f"\n{'published rule':<40} {'divergences found':<32} {'healthy runs alarmed':<32} median delay")
        for name in RULES:
            row = self.rule(name)
            found, alarmed = (
                share(row["found"], row["diverged"]),
                share(row["healthy_alarmed"], row["healthy"]),
            )
            print(f"{name:<40} {found:<32} {alarmed:<32} {row['median_delay']}")

    def plot(self, path: Path) -> None:
        """Draw it."""
        from tests.benchmarks.detection.plot import draw

        rows = {what: self.fault(what) for what in FAULTS}
        rules = {name: self.rule(name) for name in RULES}
        harmed, found, _ = self.pooled(lambda answer: answer.diverges)
        alarmed = sum(bool(j.alarms) for j in self.healthy)
        draw(
            path,
            [
                (what, row["found"], row["harmed"], wilson(row["found"], row["harmed"]))
                for what, row in rows.items()
            ],
            [
                ("optwatch", alarmed / max(len(self.healthy), 1), found / max(harmed, 1)),
                *(
                    (name, r["healthy_alarmed"] / max(r["healthy"], 1), r["found"] / max(r["diverged"], 1))
                    for name, r in rules.items()
                ),
            ],
        )


def record(folder: Path, split: str, seeds: int, minutes: float, healthy: bool) -> None:
    """Train what is not recorded yet, until the minutes are over; `healthy`: the controls alone."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [cell for cell in cells(split, seeds) if not healthy or cell.what in CONTROLS]
    todo = [cell for cell in wanted if not place(folder, cell).exists()]
    print(f"{len(todo)} trainings to go, about {len(todo) * 3 / 60:.0f} minutes at 3 s each", flush=True)
    end = time.monotonic() + 60 * minutes
    for done, cell in enumerate(todo, start=1):
        if time.monotonic() > end:
            break
        Training(cell).run().save(place(folder, cell))
        if done % 20 == 0:
            print(f"{done} of {len(todo)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SEEDS, default="dev")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--healthy", action="store_true", help="record the healthy controls alone")
    parser.add_argument("--json", type=Path, help="also write the report's numbers to this file")
    parser.add_argument("--plot", type=Path, help="also draw them (matplotlib)")
    options = parser.parse_args()
    if options.what == "record":
        record(options.folder, options.split, options.seeds, options.minutes, options.healthy)
        return
    low = SEEDS[options.split]
    paths = [p for p in sorted(options.folder.glob("*.npz")) if low <= int(p.stem.split(".")[2]) < low + 1000]
    with ProcessPoolExecutor() as pool:
        report = Report(list(pool.map(judge, paths, chunksize=4)))
    report.show()
    if options.plot:
        report.plot(options.plot)
    if options.json:
        options.json.write_text(json.dumps(report.numbers(), indent=1) + "\n")


if __name__ == "__main__":
    main()
