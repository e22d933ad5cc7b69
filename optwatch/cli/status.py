"""`optwatch status RUN`: how a run stands, once or as it changes."""

import argparse

from optwatch.cli import show
from optwatch.cli.connect import add_run, connected, seconds
from optwatch.cli.errors import Wrong
from optwatch.cli.watch import watch
from optwatch.wire.requests import RankInfo, RunStatus

HELP = "Show how a run stands: its step, loss, ranks, mode, and whether it can be acted on."
EXAMPLE = """optwatch status digits
  optwatch status digits --watch --interval 30        (plain lines, for screen readers and pipes)"""
INTERVAL = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--watch", action="store_true", help="go on: a line now and then, and one for whatever happens"
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        metavar="S",
        help=f"with --watch: seconds between two lines where nothing happens ({INTERVAL:g})",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object; with --watch, one in each line"
    )


def run(args: argparse.Namespace) -> int:
    if args.watch:
        return watch(args.run_, args.interval or INTERVAL, args.json)
    if args.interval is not None:
        raise Wrong("--interval goes with --watch")
    with connected(args.run_) as client:
        status = client.status(args.run_)
    if args.json:
        show.print_json(status)
    else:
        _print(status)
    return 0


def _print(status: RunStatus) -> None:
    gaps = ", ".join(f"{first}-{last}" for first, last in status.gaps)
    scale = f" × {status.lr_scale:g}" if status.lr_scale != 1 else ""
    facts: dict[str, show.Cell] = {
        "run": f"{status.name}  {status.run}",
        "state": status.state,
        "started": show.ago(status.started),
        "step": f"{status.step:,}" + (f"  at {status.rate:.3g} steps/s" if status.rate else ""),
        "recorded": f"{status.steps_recorded:,} steps" + (f", missing {gaps}" if gaps else ""),
        "mode": status.mode,
        "control": (status.control, show.GREEN if status.control == "armed" else show.YELLOW),
        "may": ", ".join(status.allow) or "observe only",
        "loss": show.number(status.loss),
        "lr": show.number(status.lr) + scale,
        "grad norm": show.number(status.grad_norm)
        + (f"  clipped to {show.number(status.clip)}" if status.clip is not None else ""),
        "overhead": show.share(status.overhead) + " of the step time",
        "worst finding": show.severity_cell(status.worst),
    }
    if status.noise_scale is not None:
        facts["noise scale"] = f"{show.number(status.noise_scale)} × the batch of all ranks"
    for optimizer in status.optimizers:
        tensors = sum(group.tensors for group in optimizer.groups)
        numel = sum(group.numel for group in optimizer.groups)
        facts[f"optimizer {optimizer.name}".rstrip()] = (
            f"{optimizer.kind}, {tensors} tensors, {numel:,} elements"
        )
    show.print_facts(facts)
    print()
    rows: list[list[show.Cell]] = [
        [
            str(rank.rank),
            (rank.link, show.GREEN if rank.link == "up" else show.YELLOW),
            f"{rank.step:,}",
            rank.phase,
            "-" if rank.lateness is None else f"{1e3 * rank.lateness:.1f} ms",
            _agreement(rank),
            show.share(rank.overhead),
            "by a replica" if rank.reduced else f"1 in {rank.sample_every}",
            str(rank.dropped) + (f" + {rank.thinned:,} records" if rank.thinned else ""),
            f"{rank.host}:{rank.pid}",
        ]
        for rank in status.ranks
    ]
    headers = (
        "RANK",
        "LINK",
        "STEP",
        "PHASE",
        "LATE",
        "REPLICA",
        "OVERHEAD",
        "SAMPLED",
        "DROPPED",
        "PROCESS",
    )
    show.print_table(headers, rows, right=(0, 2, 4, 6, 8))


def _agreement(rank: RankInfo) -> show.Cell:
    """Whether its replica was that of the others at the last comparison."""
    if rank.agrees is None:
        return "-"
    if rank.agrees:
        return f"agrees at {rank.checked_step:,}"
    return f"differs at {rank.checked_step:,}", show.RED
