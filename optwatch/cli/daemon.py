"""`optwatch daemon`: the daemon in the foreground."""

import argparse
import logging
from pathlib import Path
from typing import get_args

from optwatch.cli.errors import Wrong
from optwatch.wire.places import DEFAULT_ADDRESS
from optwatch.wire.requests import Mode

HELP = "Take in what agents send, find what goes wrong, serve the clients. Ends with Ctrl-C."
EXAMPLE = "optwatch daemon --mode auto --tensorboard runs/"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        help=f"address to listen on (default: {DEFAULT_ADDRESS}, or the next port that is free)",
    )
    parser.add_argument("--store", metavar="DIR", type=Path, help="where the history is kept")
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="advise",
        help="what to do about findings in new runs: nothing, propose (default), or act",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE.toml",
        type=Path,
        help="rules for advise and auto (default: the shipped ones)",
    )
    parser.add_argument(
        "--tensorboard", metavar="DIR", type=Path, help="write all runs as TensorBoard logs too, live"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="no keys: whoever reaches the address may do everything"
    )
    parser.add_argument(
        "--idle-exit", metavar="SECONDS", type=float, help="end when nobody has used it for so long"
    )


def run(args: argparse.Namespace) -> int:
    # The daemon's parts come with SQLite, numpy and sockets: only this subcommand pays for them.
    from optwatch.daemon.errors import StartError
    from optwatch.daemon.process import Settings, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = Settings(
        listen=args.listen,
        store=args.store,
        mode=args.mode,
        policy=args.policy,
        tensorboard=args.tensorboard,
        insecure=args.insecure,
        idle_exit=args.idle_exit,
    )
    try:
        serve(settings, ready=lambda address: print(f"optwatch daemon: listening on {address}", flush=True))
    except StartError as error:
        raise Wrong(str(error)) from None
    return 0
