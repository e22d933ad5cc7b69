"""`optwatch undo RUN ID`: take an applied command back."""

import argparse

from optwatch.cli.command import report
from optwatch.cli.connect import add_run, add_waiting, connected, wait

HELP = "Take an applied command back where that can be done (scale_lr, clip), and wait for it."
EXAMPLE = "optwatch undo digits 3"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("id", metavar="ID", help="the number of the command to take back")
    add_waiting(parser)
    parser.add_argument("--json", action="store_true", help="print the command as a JSON object")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        run_id = client.status(args.run_).run
        command = client.undo(run_id, args.id)
        command = wait(client, run_id, command.id, args.wait, args.timeout)
    return report(command, args.wait, args.json, args.timeout)
