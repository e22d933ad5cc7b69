"""`optwatch export FORMAT RUN DEST`: a run's history, out of the store."""

import argparse
from pathlib import Path

from optwatch.cli.archive import Archive, default_store
from optwatch.cli.errors import Wrong
from optwatch.daemon.boards import optimizer_name, write_histograms
from optwatch.daemon.head import Head
from optwatch.export.parquet import (
    ParquetError,
    Table,
    add_points,
    add_samples,
    scalar_columns,
    tensor_columns,
    write_structs,
)
from optwatch.export.tensorboard import ExportError, RunWriter
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding

HELP = "Write a run's history for other tools: TensorBoard (again: only what is new), or Parquet."
EXAMPLE = "optwatch export tensorboard digits runs/ && tensorboard --logdir runs/"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "format", metavar="FORMAT", choices=("tensorboard", "parquet"), help="tensorboard or parquet"
    )
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
    try:
        return {"tensorboard": _tensorboard, "parquet": _parquet}[args.format](archive, head, args)
    except (ExportError, ParquetError) as error:
        raise Wrong(str(error)) from None


def _parquet(archive: Archive, head: Head, args: argparse.Namespace) -> int:
    if args.tensors or args.ranks != "merged":
        raise Wrong("parquet always has tensors and ranks: --tensors and --ranks are for tensorboard")
    history, dest = archive.history, args.dest
    schemas = archive.schemas(head.run)
    names = dict.fromkeys(name for schema in schemas for name in schema.scalars)
    stats = dict.fromkeys(name for schema in schemas for name in schema.stats)
    counts = dict.fromkeys(name for schema in schemas for name in schema.counts)
    scalars = Table(dest / "scalars.parquet", scalar_columns(names, ranks=True))
    merged_names = dict(names)
    for number in range(len(head.optimizers)):  # norms of parts are one column when they are merged
        for points in history.points(head.run, number):
            merged_names |= dict.fromkeys(points.columns)
    merged = Table(dest / "merged.parquet", scalar_columns(merged_names, ranks=False))
    tensors = Table(dest / "tensors.parquet", tensor_columns(stats, counts))
    for number in range(max(len(head.optimizers), 1)):
        for rank in history.ranks(head.run, number):
            for points in history.points(head.run, number, rank):
                add_points(scalars, number, rank, points)
        for points in history.sampled_points(head.run, number):
            add_points(merged, number, None, points)
            add_samples(tensors, number, points)
    written = {}
    for table in (scalars, merged, tensors):
        table.close()
        written[table.path.name] = table.rows
    written["findings.parquet"] = write_structs(
        dest / "findings.parquet", Finding, archive.findings(head.run)
    )
    written["commands.parquet"] = write_structs(
        dest / "commands.parquet", Command, archive.commands(head.run)
    )
    for name, rows in written.items():
        print(f"{head.name}: {rows:,} rows in {dest / name}")
    return 0


def _tensorboard(archive: Archive, head: Head, args: argparse.Namespace) -> int:
    for number, optimizer in enumerate(head.optimizers):
        # A further optimizer has steps of its own, and so a directory of its own.
        name = optimizer_name(head.name, number, optimizer)
        writer = RunWriter(args.dest, head.run, name, tensors=args.tensors)
        for rank in archive.history.ranks(head.run, number) if args.ranks == "apart" else ():
            _export_rank(archive, RunWriter(args.dest, head.run, name, rank=rank), head.run, number, rank)
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
