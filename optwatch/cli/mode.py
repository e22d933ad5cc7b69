"""`optwatch mode RUN MODE`: what the policy may do about a run's findings."""

import argparse
from typing import get_args

from optwatch.cli.connect import add_run, connected
from optwatch.wire.requests import Mode

HELP = "Say what to do about a run's findings: nothing (observe), propose (advise) or act (auto)."
EXAMPLE = "optwatch mode digits auto"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("mode", metavar="MODE", choices=get_args(Mode), help="observe, advise or auto")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        client.set_mode(args.run_, args.mode)
    print(f"{args.run_}: {args.mode}")
    return 0
