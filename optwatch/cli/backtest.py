"""`optwatch backtest PATH…`: other thresholds on the same data."""

import argparse
from collections.abc import Mapping
from functools import partial

import msgspec

from optwatch.cli import show
from optwatch.cli.diagnose import add_columns, diagnose, over_all, wanted_columns
from optwatch.cli.errors import Wrong
from optwatch.cli.logs.read import Source, sources
from optwatch.detect.thresholds import changed, thresholds
from optwatch.wire.findings import Finding, Severity

HELP = "Try other thresholds of the detectors on finished logs: what would have been found."
EXAMPLE = "optwatch backtest runs/*.csv --set divergence.patience=40 --set regain.lost=0.2"


class Compared(msgspec.Struct, frozen=True):
    """One run: what the shipped thresholds find, and what the others do."""

    path: str
    points: int
    findings: tuple[Finding, ...]
    changed: tuple[Finding, ...]
    error: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a log file, TensorBoard directory or store")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="DETECTOR.KEY=VALUE",
        help="a threshold and its other value; may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="list the thresholds, their values and meanings")
    add_columns(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object a run: findings and changed"
    )


def run(args: argparse.Namespace) -> int:
    if args.list:
        rows = [(name, f"{each.value:g}", each.about) for name, each in thresholds().items()]
        show.print_table(("THRESHOLD", "VALUE", "WHAT IT IS"), rows, right=(1,))
        return 0
    settings = _settings(args.settings)
    runs = [source for path in args.paths for source in sources(path)]
    if not runs:
        raise Wrong(f"no run in {', '.join(args.paths)}" if args.paths else "name a log: PATH")
    work = partial(backtest, wanted=wanted_columns(args.column), settings=settings)
    done = list(over_all(work, runs))
    for compared in done:
        if compared.error:
            raise Wrong(compared.error)
    if args.json:
        show.print_json(
            [{"path": c.path, "points": c.points, "findings": c.findings, "changed": c.changed} for c in done]
        )
        return 0
    for compared in done:
        _print(compared)
    return 0


def backtest(source: Source, wanted: Mapping[str, str], settings: Mapping[str, float]) -> Compared:
    """Look at one run twice."""
    shipped = diagnose(source, wanted)
    with changed(settings):
        other = diagnose(source, wanted)
    return Compared(source.shown, shipped.points, shipped.findings, other.findings, shipped.error)


def _settings(options: list[str]) -> dict[str, float]:
    if not options:
        raise Wrong("say what to change: --set DETECTOR.KEY=VALUE (--list names them)")
    settings: dict[str, float] = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            settings[name] = float(text)
        except ValueError:
            raise Wrong(
                f"--set {option}: write DETECTOR.KEY=NUMBER, such as divergence.patience=40"
            ) from None
    try:
        with changed(settings):
            return settings
    except ValueError as error:
        raise Wrong(f"--set {error}") from None


def _print(compared: Compared) -> None:
    """What both find, and what only one of them does; leading indicators are left out."""
    print(show.paint(f"{compared.path}: {compared.points} points", show.BOLD))
    before, after = _named(compared.findings), _named(compared.changed)
    both = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    for (kind, *_), (old, new) in sorted(both.items(), key=lambda item: _onset(*item[1])):
        glyph, change, severity = _difference(old, new)
        mark, colour = show.SEVERITY[severity]
        print(f"  {glyph} {show.paint(f'{mark} {kind}', colour)}  {change}")
    if not both:
        print("    nothing wrong found either way")


def _named(findings: tuple[Finding, ...]) -> dict[tuple[str, str | None, int], Finding]:
    """The findings that are shown, by kind, tensor and how many of these came before."""
    named: dict[tuple[str, str | None, int], Finding] = {}
    for finding in findings:
        if finding.severity != "watch":
            number = sum(name[:2] == (finding.kind, finding.tensor) for name in named)
            named[finding.kind, finding.tensor, number] = finding
    return named


def _onset(*findings: Finding | None) -> int:
    return min(finding.onset_step for finding in findings if finding is not None)


def _difference(old: Finding | None, new: Finding | None) -> tuple[str, str, Severity]:
    """A sign, what the change does, and the severity that is shown."""
    if old is None:
        assert new is not None
        return "+", f"found only with the change, at step {new.step}", new.severity
    if new is None:
        return "-", f"no longer found; as shipped, at step {old.step}", old.severity
    parts = []
    if old.severity != new.severity:
        parts.append(f"{old.severity} → {new.severity}")
    if old.step != new.step:
        parts.append(f"step {old.step} → {new.step}")
    return " ", ", ".join(parts) or f"the same, at step {new.step}", new.severity
