"""`optwatch run -- script.py ARGS`: an unchanged training script, watched."""

import argparse
import atexit
import logging
import sys
from typing import Any

from optwatch.cli.errors import Wrong
from optwatch.cli.script import run_module, run_script, when_imported

log = logging.getLogger("optwatch")

HELP = "Run an unchanged training script with the agent attached to its optimizers."
EXAMPLE = """optwatch run --name baseline -- train.py --lr 0.1
  optwatch run -m package.train --lr 0.1
  torchrun --nproc-per-node 2 --no-python optwatch run -- train.py

The optimizers that are there when the first of them steps are one run (a GAN's two, say), and so are those of
a tensor each that are made during the first step (Pyro's), from the second step on. One that is made later is
a run of its own: the second training of a script named train.py is "train 2". The script runs in this process
as python would run it. Processes that it forks are watched too, but for their last moments; those that it
spawns are not, other than by an optwatch.attach of their own."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="the run's name; by default the script's")
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m does")
    parser.add_argument(
        "script", nargs=argparse.REMAINDER, metavar="SCRIPT ARGS", help="the script, and what it is given"
    )


def run(args: argparse.Namespace) -> int:
    target, *arguments = args.script[1:] if args.script[:1] == ["--"] else args.script or [""]
    if not target:
        raise Wrong("which script? For example: optwatch run -- train.py --lr 0.1")
    everything: list[Any] = []

    def watch() -> None:
        try:
            from optwatch_agent.unchanged import Everything

            everything.append(Everything(args.name))
        except Exception as error:  # noqa: BLE001 - never in the way of the script
            log.warning("optwatch: this training is not watched: %r", error)

    def tell() -> None:
        if why := everything[0].why_nothing if everything else "torch was not imported":
            print(f"optwatch run: {why}, so nothing was watched", file=sys.stderr)

    # The script may set the environment that torch reads before it imports torch, or never import it.
    when_imported("torch", watch)
    atexit.register(tell)
    try:
        (run_module if args.module else run_script)(target, arguments)
    except Wrong:
        atexit.unregister(tell)
        raise
    return 0
