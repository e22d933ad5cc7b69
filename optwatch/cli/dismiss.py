"""`optwatch dismiss RUN ID`: turn a proposed command down."""

import argparse

from optwatch.cli.connect import add_run, connected

HELP = "Turn a proposed command down; it is not proposed again for the same finding."
EXAMPLE = 'optwatch dismiss digits 3 --reason "the LR rises on purpose"'


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("id", metavar="ID", help="the command's number in the run")
    parser.add_argument("--reason", default="", help="kept with the command")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        command = client.dismiss(args.run_, args.id, args.reason)
    print(f"{command.id} {command.action}: {command.state}")
    return 0
