"""`optwatch approve RUN ID`: let a proposed command go ahead."""

import argparse

from optwatch.cli.command import report
from optwatch.cli.connect import add_run, add_waiting, connected, wait

HELP = "Approve a proposed command, and wait until every rank has applied it."
EXAMPLE = "optwatch approve digits 3        (the ids are in `optwatch commands digits`)"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("id", metavar="ID", help="the command's number in the run")
    add_waiting(parser)
    parser.add_argument("--json", action="store_true", help="print the command as a JSON object")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        run_id = client.status(args.run_).run
        command = client.approve(run_id, args.id)
        command = wait(client, run_id, command.id, args.wait, args.timeout)
    return report(command, args.wait, args.json, args.timeout)
