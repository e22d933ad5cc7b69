"""`optwatch store check|compact|audit|export|import`: upkeep of the history."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from optwatch.cli.errors import Wrong
from optwatch.cli.limits import add_limits, limits_of
from optwatch.cli.show import print_json, print_table
from optwatch.wire.places import state_dir

HELP = "Check that all of the store can be read, make it smaller, see who commanded what, move a run."
EXAMPLE = "optwatch store compact --thin-after 30 --delete-after 365"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="check|compact|audit|export|import", required=True)
    check = verbs.add_parser("check", help="read everything; exit 1 where something is wrong")
    compact = verbs.add_parser("compact", help="merge, thin or delete what is old; no daemon may have it")
    audit = verbs.add_parser("audit", help="what clients asked to be done: when, who, which run")
    export = verbs.add_parser("export", help="write a run to a file of its own, bit for bit")
    export.add_argument(
        "run_", metavar="RUN", help="a run's name (its newest run) or the beginning of its id"
    )
    bring = verbs.add_parser("import", help="take a run from such a file; no daemon may have the store")
    for verb in (export, bring):
        verb.add_argument("file", metavar="FILE", type=Path, help="the file, such as digits.optwatch")
    for verb in (check, compact, audit, export, bring):
        verb.add_argument("--store", metavar="DIR", type=Path, help="the store (default: your own)")
        verb.add_argument("--json", action="store_true", help="print JSON")
    add_limits(compact)


def run(args: argparse.Namespace) -> int:
    from optwatch.daemon.errors import StartError

    try:
        verbs = {"check": _check, "compact": _compact, "audit": _audit, "export": _export, "import": _import}
        return verbs[args.verb](args)
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

    gain = compact(args.store or state_dir(), limits_of(args))
    if args.json:
        print(json.dumps(asdict(gain)))
    else:
        print(
            f"{_mib(gain.before)} → {_mib(gain.after)}, {gain.runs_deleted} runs deleted, "
            f"{gain.records_thinned:,} records and {gain.scalars_thinned:,} rows of scalars thinned out"
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


def _export(args: argparse.Namespace) -> int:
    from optwatch.daemon.head import UnknownRun
    from optwatch.daemon.transfer import export_run

    try:
        head, size = export_run(args.store or state_dir(), args.run_, args.file)
    except UnknownRun as error:
        raise Wrong(str(error.args[0])) from None
    if args.json:
        print(json.dumps({"run": head.run, "name": head.name, "file": str(args.file), "size": size}))
    else:
        print(f"{head.name} ({head.run[:8]}): {_mib(size)} in {args.file}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from optwatch.daemon.transfer import import_run

    head = import_run(args.file, args.store or state_dir())
    if args.json:
        print(json.dumps({"run": head.run, "name": head.name}))
    else:
        print(f"{head.name} ({head.run[:8]}) is in the store")
    return 0


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
