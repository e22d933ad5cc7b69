"""What the detectors cost: points of 500 tensors a second, streamed as the daemon does, and log points.

python -m tests.benchmarks.detection.cost [--tensors 500] [--points 2000]
"""

import argparse
import time

import numpy as np

from optwatch.detect.panel import Panel
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


def log_points_per_second(points: int) -> float:
    """Points of a log with loss, gradient norm and LR a second of one core's time."""
    rng = np.random.default_rng(0)
    columns = {
        name: Column(np.exp(rng.normal(-1, 0.1, points)), np.ones(points, bool))
        for name in ("loss", "grad_norm", "lr")
    }
    run = Points(np.arange(points, dtype=np.int64), columns)
    panel = Panel("run")
    began = time.process_time()
    panel.update(run)
    return points / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=int, default=500)
    parser.add_argument("--points", type=int, default=2_000)
    options = parser.parse_args()
    rate = tensor_points_per_second(options.tensors, options.points)
    print(f"{options.tensors} tensors, streamed: {rate:,.0f} points/s a core")
    print(f"log: {log_points_per_second(100 * options.points):,.0f} points/s a core")


if __name__ == "__main__":
    main()
