"""The fault-injection benchmark: real trainings with faults and healthy controls, judged by the answer key.

    python -m tests.benchmarks.detection.faults --results FILE [--split test] [--seeds 5] [--minutes 10]
    python -m tests.benchmarks.detection.faults --results FILE [--split test] --report

Each training takes 1-5 s on one core. FILE (outside the repository) gets one JSON line a training, and
what is in it already is not run again: several sittings add to one result. Development seeds count from
0, test seeds from 1,000; thresholds are tuned on the first alone.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from optwatch.wire.findings import ALARMS
from tests.benchmarks.detection.answer_key import CONTROLS, FAULTS, HARM
from tests.benchmarks.detection.trainings import FROM_START, INJECTED, MODELS, STEPS, Cell, Training

SEEDS = {"dev": 0, "test": 1_000}


class Found(msgspec.Struct, frozen=True):
    kind: str
    severity: str
    step: int
    onset: int
    cause: str


class Result(msgspec.Struct, frozen=True):
    """One training, as a line of the results."""

    model: str
    what: str
    seed: int
    held_out: float | None
    """None: non-finite."""
    non_finite: int | None
    found: tuple[Found, ...]

    @property
    def alarms(self) -> list[Found]:
        return [finding for finding in self.found if finding.severity in ALARMS]


def cells(split: str, seeds: int) -> Iterator[Cell]:
    """All faults and controls over all models, a whole round before the next seed, each in random order:
    a sitting that ends early leaves a balanced part."""
    first = SEEDS[split]
    for seed in range(first, first + seeds):
        turn = [Cell(model, what, seed) for what in (*CONTROLS, *FAULTS) for model in MODELS]
        random.Random(seed).shuffle(turn)
        # The healthy twins first: without them nobody knows what a fault did.
        yield from sorted(turn, key=lambda cell: cell.what != "plain")


def run(cell: Cell) -> Result:
    outcome = Training(cell).run()
    return Result(
        model=cell.model,
        what=cell.what,
        seed=cell.seed,
        held_out=outcome.held_out if math.isfinite(outcome.held_out) else None,
        non_finite=outcome.first_non_finite,
        found=tuple(
            Found(f.kind, f.severity, f.step, f.onset_step, f.causes[0].cause if f.causes else "")
            for f in outcome.findings
        ),
    )


def wilson(hits: int, of: int) -> str:
    """A share and its 95 % interval (Wilson 1927)."""
    if not of:
        return "-"
    z, share = 1.96, hits / of
    centre = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return f"{share:6.1%} [{max(centre - half, 0):.1%}, {min(centre + half, 1):.1%}] {hits}/{of}"


def report(results: list[Result]) -> None:
    """Recall, time to detect and first cause by fault; false alarms by control."""
    twins = {(r.model, r.seed): r.held_out for r in results if r.what == "plain"}
    print(f"{'fault':<20} {'found':<32} {'first cause right':<32} median steps to detect")
    for what, answer in FAULTS.items():
        harmed = [r for r in results if r.what == what and _harmed(r, twins.get((r.model, r.seed)))]
        start = 1 if what in FROM_START else INJECTED
        right = []
        for result in harmed:
            told = [f for f in result.found if f.severity != "watch" and f.step >= start]
            right.append(min((f for f in told if f.kind in answer.kinds), key=lambda f: f.step, default=None))
        hits = [found for found in right if found is not None]
        delays = sorted(found.step - start for found in hits)
        caused = sum(found.cause in answer.causes for found in hits)
        delay = str(delays[len(delays) // 2]) if delays else "-"
        print(f"{what:<20} {wilson(len(hits), len(right)):<32} {wilson(caused, len(hits)):<32} {delay}")
    healthy = [r for r in results if r.what in CONTROLS]
    print(f"\n{'control':<24} runs with an alarm")
    for what in CONTROLS:
        runs = [r for r in healthy if r.what == what]
        kinds = sorted({found.kind for r in runs for found in r.alarms})
        print(f"{what:<24} {wilson(sum(bool(r.alarms) for r in runs), len(runs))}  {', '.join(kinds)}")
    alarms = sum(len(r.alarms) for r in healthy)
    print(f"{'all':<24} {wilson(sum(bool(r.alarms) for r in healthy), len(healthy))}")
    print(f"{alarms} alarms in {len(healthy) * STEPS:,} healthy steps")


def _harmed(result: Result, twin: float | None) -> bool:
    return twin is not None and (result.held_out is None or result.held_out > HARM * twin)


def read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Result) for line in path.read_bytes().splitlines() if line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--split", choices=SEEDS, default="dev")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    low = SEEDS[options.split]
    results = [r for r in read(options.results) if low <= r.seed < low + 1_000]
    if not options.report:
        done = {(r.model, r.what, r.seed) for r in results}
        open_cells = [c for c in cells(options.split, options.seeds) if (c.model, c.what, c.seed) not in done]
        print(f"{len(open_cells)} trainings to go, about {len(open_cells) * 3 / 60:.0f} minutes at 3 s each")
        until = time.monotonic() + 60 * options.minutes
        with options.results.open("ab") as file:
            for cell in open_cells:
                if time.monotonic() > until:
                    break
                result = run(cell)
                file.write(msgspec.json.encode(result) + b"\n")
                file.flush()
                results.append(result)
    report(results)


if __name__ == "__main__":
    main()
