"""The options that say how long and how much of the history is kept."""

import argparse
from typing import TYPE_CHECKING

from optwatch.cli.connect import between

if TYPE_CHECKING:
    from optwatch.daemon.retention import Limits


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What `limits_of` reads."""
    parser.add_argument(
        "--thin-after",
        metavar="DAYS",
        type=_days,
        help="of runs not heard of for so long keep one step in ten, extremes, and all near findings",
    )
    parser.add_argument(
        "--delete-after", metavar="DAYS", type=_days, help="delete runs not heard of for so long"
    )
    parser.add_argument(
        "--max-size",
        metavar="GIB",
        type=_gib,
        help="thin, then delete the runs not heard of for longest while the store is larger",
    )


def limits_of(args: argparse.Namespace) -> "Limits":
    from optwatch.daemon.retention import Limits

    size = None if args.max_size is None else int(args.max_size * 2**30)
    return Limits(args.thin_after, args.delete_after, size)


def _days(text: str) -> float:
    return between(text, -1e-9, 1e5, "number of days")


def _gib(text: str) -> float:
    return between(text, 0, 1e6, "number of GiB")
