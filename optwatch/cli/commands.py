"""`optwatch commands RUN`: what was done to a run, who wanted it, and what came of it."""

import argparse

from optwatch.cli import show
from optwatch.cli.connect import add_run, connected
from optwatch.export.text import arguments
from optwatch.wire.actions import Command

HELP = "List the commands of a run: who asked and why, when each was applied, what came of it."
EXAMPLE = "optwatch commands digits --json"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        commands = client.commands(args.run_)
    if args.json:
        show.print_json(commands)
        return 0
    if not commands:
        print("no commands so far: `optwatch command RUN restart` gives one by hand")
        return 0
    rows: list[list[show.Cell]] = [
        [
            command.id,
            show.state_cell(command),
            f"{command.action} {arguments(command.args)}".rstrip(),
            "-" if command.step is None else f"{command.step:,}",
            ",".join(map(str, command.ranks_applied)) or "-",
            {None: "-", True: "agree", False: "differ"}[command.replicas_agree],
            command.asked_by,
            outcome_text(command),
            command.reason or command.why,
        ]
        for command in commands
    ]
    headers = ("ID", "STATE", "ACTION", "STEP", "RANKS", "REPLICAS", "ASKED BY", "OUTCOME", "WHY")
    show.print_table(headers, rows, right=(0, 3))
    return 0


def outcome_text(command: Command) -> str:
    """The verdict, with the loss before and after where it was measured; "-" where there is none yet."""
    if command.outcome is None:
        return "-"
    numbers = command.outcome.numbers
    if "before" in numbers and "after" in numbers:
        return f"{command.outcome.verdict}: loss {numbers['before']:.4g} → {numbers['after']:.4g}"
    return command.outcome.verdict
