"""`optwatch mark RUN TEXT`: a planned change, said from outside the script."""

import argparse

from optwatch.cli.connect import add_run, connected

HELP = "Mark a planned change at a run's present step: detectors begin anew, the policy holds still."
EXAMPLE = 'optwatch mark digits "curriculum stage 2"'


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("text", metavar="TEXT", help="what changes")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        client.mark(args.run_, args.text)
        step = client.status(args.run_).step
    print(f"marked at step {step:,}: {args.text}")
    return 0
