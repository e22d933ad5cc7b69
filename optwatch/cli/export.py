"""`optwatch export FORMAT RUN DEST`: a run's history, out of the store."""

import argparse
from pathlib import Path

from optwatch.cli.archive import Archive, default_store
from optwatch.cli.errors import Wrong
from optwatch.daemon.boards import optimizer_name, write_histograms
from optwatch.export.tensorboard import ExportError, RunWriter

HELP = "Write a run's history for other tools: tensorboard. Doing it again adds only what is new."
EXAMPLE = "optwatch export tensorboard digits runs/ && tensorboard --logdir runs/"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", metavar="FORMAT", choices=("tensorboard",), help="tensorboard")
    parser.add_argument(
        "run_", metavar="RUN", help="a run's name (its newest run) or the beginning of its id"
    )
    parser.add_argument("dest", metavar="DEST", type=Path, help="directory to write to; made where missing")
    parser.add_argument("--tensors", action="store_true", help="each tensor's statistics and histograms too")
    parser.add_argument(
        "--ranks",
        choices=("merged", "apart"),
        default="merged",
        help="merged: one series of all ranks (default); apart: also each rank's own, in its own directory",
    )
    parser.add_argument(
        "--store",
        metavar="DIR",
        type=Path,
        help="the store (default: the running daemon's, else this user's)",
    )


def run(args: argparse.Namespace) -> int:
    archive = Archive(args.store or default_store())
    head = archive.find(args.run_)
    for number, optimizer in enumerate(head.optimizers):
        # A further optimizer has steps of its own, and so a directory of its own.
        name = optimizer_name(head.name, number, optimizer)
        try:
            writer = RunWriter(args.dest, head.run, name, tensors=args.tensors)
            for rank in archive.history.ranks(head.run, number) if args.ranks == "apart" else ():
                _export_rank(archive, RunWriter(args.dest, head.run, name, rank=rank), head.run, number, rank)
        except ExportError as error:
            raise Wrong(str(error)) from None
        steps = 0
        for points in archive.history.sampled_points(head.run, number):
            writer.points(points)
            steps += len(points)
        write_histograms(archive.history, writer, head.run, number)
        if number == 0:
            writer.hparams(head.config, head.optimizers)
            for finding in archive.findings(head.run):
                writer.finding(finding)
            for command in archive.commands(head.run):
                writer.command(command)
            if head.ended:
                writer.end()
        writer.close()
        print(f"{head.name}: {steps:,} steps in {writer.path}")
    return 0


def _export_rank(archive: Archive, writer: RunWriter, run: str, optimizer: int, rank: int) -> None:
    for points in archive.history.points(run, optimizer, rank, first=writer.last + 1):
        writer.points(points)
    writer.close()
