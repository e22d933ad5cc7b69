"""`optwatch diagnose PATH…`: the detectors over finished logs."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec

from optwatch.cli import show
from optwatch.cli.errors import Wrong
from optwatch.cli.logs.columns import ALIASES, unknown
from optwatch.cli.logs.read import Source, read, sources
from optwatch.cli.logs.sketch import Sketch
from optwatch.detect.panel import Panel
from optwatch.wire.findings import ALARMS, Finding

HELP = "Say what went wrong in finished training logs: CSV, JSON lines, TensorBoard, Hugging Face, a store."
EXAMPLE = "optwatch diagnose runs/*.csv --column loss=train/ce"


Done = TypeVar("Done")


class Diagnosis(msgspec.Struct, frozen=True):
    """One run: what was found in so many points, or why it could not be read."""

    path: str
    points: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    sketch: tuple[str, ...] = ()
    error: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a log file, TensorBoard directory or store")
    add_columns(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a run")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """The option that names columns, for every command that reads logs."""
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=HEADER",
        help=f"which header gives a column; NAME is one of {', '.join(ALIASES)}",
    )


def run(args: argparse.Namespace) -> int:
    wanted = wanted_columns(args.column)
    runs = [source for path in args.paths for source in sources(path)]
    if not runs:
        raise Wrong(f"no run in {', '.join(args.paths)}")
    done = []
    for diagnosis in over_all(partial(diagnose, wanted=wanted), runs):
        done.append(diagnosis)
        if not args.json and not diagnosis.error:
            _print(diagnosis)
    if args.json:
        show.print_json([_plain(diagnosis) for diagnosis in done if not diagnosis.error])
    errors = [diagnosis.error for diagnosis in done if diagnosis.error]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise Wrong(errors[0] + more)
    alarms = any(finding.severity in ALARMS for diagnosis in done for finding in diagnosis.findings)
    return 1 if alarms else 0


def diagnose(source: Source, wanted: Mapping[str, str]) -> Diagnosis:
    """Read one run and look at all of it."""
    notes: list[str] = []
    panel = Panel(source.shown)
    sketch = Sketch()
    points = 0
    try:
        for part in read(source, wanted, notes):
            panel.update(part)
            sketch.add(part)
            points += len(part)
    except Wrong as error:
        return Diagnosis(source.shown, 0, (), error=str(error))
    lines = sketch.lines([finding for finding in panel.findings if finding.severity in ALARMS])
    return Diagnosis(source.shown, points, panel.findings, tuple(notes), tuple(lines))


def over_all(work: Callable[[Source], Done], runs: list[Source]) -> Iterator[Done]:
    """What the work gives for each run, in their order; on all cores, with progress on stderr."""
    if len(runs) == 1:
        yield work(runs[0])
        return
    told = sys.stderr.isatty()
    with ProcessPoolExecutor(min(len(runs), os.cpu_count() or 1)) as pool:
        try:
            for number, done in enumerate(pool.map(work, runs), 1):
                if told:
                    end = "\n" if number == len(runs) else ""
                    print(f"\r{number} of {len(runs)} runs", end=end, file=sys.stderr, flush=True)
                yield done
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def wanted_columns(options: list[str]) -> dict[str, str]:
    """Which header gives a column, as the options say."""
    wanted = {}
    for option in options:
        name, given, header = option.partition("=")
        if not given or not header:
            raise Wrong(f"--column {option}: write NAME=HEADER, such as loss=train/ce")
        wanted[name] = header
    if (other := unknown(wanted)) is not None:
        raise Wrong(f"--column {other}=…: the columns are {', '.join(ALIASES)}")
    return wanted


def _plain(diagnosis: Diagnosis) -> dict[str, Any]:
    return {"path": diagnosis.path, "points": diagnosis.points, "findings": diagnosis.findings}


def _print(diagnosis: Diagnosis) -> None:
    told = [finding for finding in diagnosis.findings if finding.severity != "watch"]
    quiet = len(diagnosis.findings) - len(told)
    print(show.paint(f"{diagnosis.path}: {diagnosis.points} points", show.BOLD))
    for note in diagnosis.notes:
        print(f"  note: {note}")
    for line in diagnosis.sketch:
        print(f"  {line}")
    for finding in told:
        glyph, colour = show.SEVERITY[finding.severity]
        until = f" to {finding.resolved_step}" if finding.resolved_step is not None else ""
        where = f"from step {finding.onset_step}{until}, seen at {finding.step}"
        print(f"  {show.paint(f'{glyph} {finding.kind}', colour)}  {where}: {finding.summary}")
        if finding.severity in ALARMS:
            for cause in finding.causes:
                print(f"      cause  {cause.cause} {cause.weight:.2f}: {cause.because}")
            for remedy in finding.remedies:
                if remedy.action == "advice":
                    print(f"      helps  {remedy.why}")
    if not told:
        print("  nothing wrong found")
    if quiet:
        print(show.paint(f"  {quiet} leading indicators, not shown", show.DIM))
    print()
