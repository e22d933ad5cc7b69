"""What the detectors cost: points of 500 tensors a second, streamed as the daemon does, and log points.

python -m tests.benchmarks.detection.cost [--tensors 500] [--points 2000] [--logs 1000000]

The logs are written to a temporary folder and given to `optwatch diagnose`, once as one file and once as a
hundred; its time is the whole command's, reading included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from optwatch.detect.panel import Panel, part
from optwatch.series.points import Column, Points, Samples
from optwatch.wire.messages import COUNTS, STATS

CHUNK = 16
"""Points that come at a time."""


def stream(tensors: int, points: int, seed: int = 0) -> list[Points]:
    """Chunks of a healthy run in which every tensor is measured at every point."""
    rng = np.random.default_rng(seed)
    chunks = []
    for first in range(1, points + 1, CHUNK):
        step = np.arange(first, first + CHUNK, dtype=np.int64)
        columns = {
            name: Column(np.exp(rng.normal(-1, 0.1, CHUNK)), np.ones(CHUNK, bool))
            for name in ("loss", "grad_norm", "lr", "step_time", "update_norm", "param_norm")
        }
        stats = np.exp(rng.normal(-3, 0.1, (len(STATS), CHUNK, tensors))).astype(np.float32)
        samples = Samples(
            step=step,
            names=tuple(f"layer{i}.weight" for i in range(tensors)),
            numel=np.full(tensors, 4_096),
            stats=dict(zip(STATS, stats, strict=True)),
            counts={name: np.zeros((CHUNK, tensors), np.uint64) for name in COUNTS},
        )
        chunks.append(Points(step=step, columns=columns, samples=samples))
    return chunks


def tensor_points_per_second(tensors: int, points: int) -> float:
    """Points of tensors a second of one core's time."""
    chunks = stream(tensors, points)
    panel = Panel("run")
    began = time.process_time()
    for chunk in chunks:
        panel.update(chunk)
    return tensors * points / (time.process_time() - began)


def log(points: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Loss, gradient norm and LR of a run that falls to a plateau."""
    rng, at = np.random.default_rng(seed), np.arange(points)
    return {
        "loss": (0.3 + 2 * np.exp(-5 * at / points)) * np.exp(rng.normal(0, 0.1, points)),
        "grad_norm": np.exp(rng.normal(-1, 0.2, points)),
        "lr": 1e-3 * np.minimum(1, at / 500) * (1 - at / points),
    }


def log_points_per_second(points: int, at_a_time: int) -> float:
    """Points of such a log a second of one core's time, given so many at a time."""
    columns = {name: Column(values, np.ones(points, bool)) for name, values in log(points).items()}
    run = Points(np.arange(points, dtype=np.int64), columns)
    chunks = [part(run, start, min(start + at_a_time, points)) for start in range(0, points, at_a_time)]
    panel = Panel("run")
    began = time.process_time()
    for chunk in chunks:
        panel.update(chunk)
    return points / (time.process_time() - began)


def diagnose(points: int, files: int, folder: Path) -> tuple[float, float]:
    """Seconds that `optwatch diagnose` takes for so many points over so many CSV files, and of all cores."""
    paths = []
    for number in range(files):
        columns = log(points // files, number)
        path = folder / f"{files}-{number}.csv"
        with path.open("w") as file:
            file.write(",".join(("step", *columns)) + "\n")
            values = zip(*(column.tolist() for column in columns.values()), strict=True)
            file.writelines(f"{step},{','.join(map(repr, row))}\n" for step, row in enumerate(values, 1))
        paths.append(str(path))
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "optwatch", "diagnose", *paths, "--json"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    took, now = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"optwatch diagnose ended with {done.returncode}")
    return took, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=int, default=500)
    parser.add_argument("--points", type=int, default=2_000)
    parser.add_argument("--logs", type=int, default=1_000_000)
    options = parser.parse_args()
    rate = tensor_points_per_second(options.tensors, options.points)
    print(f"{options.tensors} tensors, streamed: {rate:,.0f} points/s a core")
    for at_a_time in (1, CHUNK, options.logs):
        rate = log_points_per_second(min(options.logs, 20_000 * at_a_time), at_a_time)
        print(f"a log, {at_a_time:,} points at a time: {rate:,.0f} points/s a core")
    with tempfile.TemporaryDirectory() as folder:
        for files in (1, 100):
            took, cpu = diagnose(options.logs, files, Path(folder))
            print(
                f"optwatch diagnose, {options.logs:,} points in {files} CSV: {took:.1f} s, {cpu:.1f} s of CPU"
            )


if __name__ == "__main__":
    main()
