"""`optwatch store check|compact|audit`: upkeep of the history."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from optwatch.cli.connect import between
from optwatch.cli.errors import Wrong
from optwatch.cli.show import print_json, print_table
from optwatch.wire.places import state_dir

HELP = "Check that all of the store can be read, make it smaller, or see who commanded what."
EXAMPLE = "optwatch store compact --thin-after 30 --delete-after 365"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="check|compact|audit", required=True)
    check = verbs.add_parser("check", help="read everything; exit 1 where something is wrong")
    compact = verbs.add_parser("compact", help="merge, thin or delete what is old; no daemon may have it")
    audit = verbs.add_parser("audit", help="what clients asked to be done: when, who, which run")
    for verb in (check, compact, audit):
        verb.add_argument("--store", metavar="DIR", type=Path, help="the store (default: your own)")
        verb.add_argument("--json", action="store_true", help="print JSON")
    compact.add_argument(
        "--thin-after",
        metavar="DAYS",
        type=_days,
        help="keep one in ten per-tensor records of runs not heard of for so long, and all near findings",
    )
    compact.add_argument(
        "--delete-after", metavar="DAYS", type=_days, help="delete runs not heard of for so long"
    )


def run(args: argparse.Namespace) -> int:
    from optwatch.daemon.errors import StartError

    try:
        return {"check": _check, "compact": _compact, "audit": _audit}[args.verb](args)
    except StartError as error:
        raise Wrong(str(error)) from None


def _check(args: argparse.Namespace) -> int:
    from optwatch.daemon.upkeep import check

    report = check(args.store or state_dir())
    problems = report.problems
    if args.json:
        print(json.dumps(asdict(report)))
    else:
        size = _mib(report.size)
        print(f"{report.runs} runs, {report.rows:,} rows in {report.chunks:,} chunks, {size}")
        for problem in problems:
            print(f"wrong: {problem}")
        print(f"wrong: {len(problems)} in all" if problems else "nothing is wrong")
    return 1 if problems else 0


def _compact(args: argparse.Namespace) -> int:
    from optwatch.daemon.upkeep import compact

    gain = compact(args.store or state_dir(), thin_after=args.thin_after, delete_after=args.delete_after)
    if args.json:
        print(json.dumps(asdict(gain)))
    else:
        print(
            f"{_mib(gain.before)} → {_mib(gain.after)}, {gain.runs_deleted} runs deleted, "
            f"{gain.records_thinned:,} records thinned out"
        )
    return 0


def _audit(args: argparse.Namespace) -> int:
    from optwatch.daemon.upkeep import audit

    log = audit(args.store or state_dir())
    if args.json:
        print_json(log)
    else:
        print_table(
            ("when", "who", "run", "asked for", "in full"),
            [(time.strftime("%F %T", time.localtime(e.at)), e.who, e.run[:8], e.what, e.detail) for e in log],
        )
    return 0


def _days(text: str) -> float:
    return between(text, -1e-9, 1e5, "number of days")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
