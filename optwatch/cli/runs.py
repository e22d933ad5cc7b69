"""`optwatch runs`: the runs that the daemon knows."""

import argparse

from optwatch.cli import show
from optwatch.cli.connect import connected

HELP = "List the runs, the newest first."
EXAMPLE = "optwatch runs --json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    with connected() as client:
        runs = client.runs()
    if args.json:
        show.print_json(runs)
        return 0
    if not runs:
        print("no runs yet: a training that calls optwatch.attach(optimizer) appears here")
        return 0
    rows: list[list[show.Cell]] = [
        [
            info.name,
            info.run[:8],
            _state(info.state),
            f"{info.step:,}",
            show.number(info.loss),
            f"{info.rate:.3g}/s" if info.rate else "-",
            str(info.world_size),
            show.ago(info.started),
            show.severity_cell(info.worst),
        ]
        for info in runs
    ]
    headers = ("NAME", "RUN", "STATE", "STEP", "LOSS", "RATE", "RANKS", "STARTED", "WORST")
    show.print_table(headers, rows, right=(3, 4, 5, 6))
    return 0


def _state(state: str) -> show.Cell:
    return {
        "live": ("● live", show.GREEN),
        "stale": ("◌ stale", show.YELLOW),
        "ended": ("■ ended", show.DIM),
    }.get(state, state)
