"""`optwatch findings RUN`: what is, or was, wrong with a run."""

import argparse

from optwatch.cli import show
from optwatch.cli.connect import add_run, connected
from optwatch.export.text import arguments
from optwatch.wire.findings import Finding

HELP = "List what was found in a run, with the likely causes and what helps."
EXAMPLE = "optwatch findings digits"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(args: argparse.Namespace) -> int:
    with connected(args.run_) as client:
        findings = client.findings(args.run_)
    if args.json:
        show.print_json(findings)
        return 0
    if not findings:
        print("nothing found so far")
    for finding in findings:
        _print(finding)
    return 0


def _print(finding: Finding) -> None:
    glyph, colour = show.SEVERITY[finding.severity]
    head = show.paint(f"{glyph} {finding.id:>2}  {finding.severity:<8}  {finding.kind}", colour)
    where = [f"step {finding.step}"]
    where += [f"since step {finding.onset_step}"] if finding.onset_step != finding.step else []
    where += [f"rank {finding.rank}"] if finding.rank is not None else []
    where += [finding.tensor] if finding.tensor is not None else []
    where += [f"over at step {finding.resolved_step}"] if finding.resolved_step is not None else []
    print(f"{head}  {show.paint(' · '.join(where), show.DIM)}")
    print(f"      {finding.summary}")
    for cause in finding.causes:
        print(f"      cause  {cause.cause} {cause.weight:.2f}: {cause.because}")
    for remedy in finding.remedies:
        print(f"      helps  {' '.join([remedy.action, arguments(remedy.args)]).rstrip()}: {remedy.why}")
