"""`optwatch runs`: the runs that the daemon knows, or several daemons do."""

import argparse
import sys

from optwatch.cli import show
from optwatch.cli.errors import Wrong
from optwatch.client import DaemonError
from optwatch.client.several import all_runs

HELP = "List the runs, the newest first."
EXAMPLE = "optwatch runs --json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    try:
        found, problems = all_runs()
    except DaemonError as error:
        raise Wrong(str(error)) from None
    for problem in problems:
        print(f"optwatch runs: {problem}", file=sys.stderr)
    if args.json:
        show.print_json([info for info, _ in found])
        return 0
    if not found:
        print("no runs yet: a training that calls optwatch.attach(optimizer) appears here")
        return 0
    several = len({daemon for _, daemon in found}) > 1
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
            *([daemon] if several else []),
        ]
        for info, daemon in found
    ]
    headers = ("NAME", "RUN", "STATE", "STEP", "LOSS", "RATE", "RANKS", "STARTED", "WORST", "DAEMON")
    show.print_table(headers if several else headers[:-1], rows, right=(3, 4, 5, 6))
    return 0


def _state(state: str) -> show.Cell:
    return {
        "live": ("● live", show.GREEN),
        "stale": ("◌ stale", show.YELLOW),
        "ended": ("■ ended", show.DIM),
    }.get(state, state)
