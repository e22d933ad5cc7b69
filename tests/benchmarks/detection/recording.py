"""What an agent saw of one training, kept in a file: detectors and rules are judged on it again and again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from optwatch.detect.panel import part
from optwatch.series.points import Column, Points, Samples
from optwatch.wire.messages import OptimizerInfo

CHUNK = 10
"""Steps that the detectors are given at a time, as a daemon would."""


@dataclass(frozen=True)
class Recording:
    """One training: the held-out loss at its end, the steps it marked, its optimizer and its points."""

    held_out: float
    marks: tuple[int, ...]
    setup: OptimizerInfo
    points: Points

    @property
    def first_non_finite(self) -> int | None:
        """The step of the first loss that is not finite."""
        found = np.flatnonzero(~np.isfinite(self.points.column("loss").values))
        return int(self.points.step[found[0]]) if len(found) else None

    def chunks(self) -> Iterator[Points]:
        """The points, a few steps at a time."""
        for start in range(0, len(self.points), CHUNK):
            yield part(self.points, start, min(start + CHUNK, len(self.points)))

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        samples = self.points.samples
        assert samples is not None
        arrays = {
            "held_out": np.array(self.held_out),
            "marks": np.array(self.marks, np.int64),
            "setup": np.frombuffer(msgspec.json.encode(self.setup), np.uint8),
            "names": np.array(samples.names),
            "step": self.points.step,
            "sample_step": samples.step,
            "numel": samples.numel,
        }
        for name, column in self.points.columns.items():
            arrays[f"column:{name}"] = column.values
            arrays[f"logged:{name}"] = column.logged
        arrays |= {f"stat:{name}": block for name, block in samples.stats.items()}
        arrays |= {f"count:{name}": block for name, block in samples.counts.items()}
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> "Recording":
        """Read what `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)

        def named(prefix: str) -> dict[str, np.ndarray]:
            return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}

        logged = named("logged:")
        samples = Samples(
            step=arrays["sample_step"],
            names=tuple(arrays["names"].tolist()),
            numel=arrays["numel"],
            stats=named("stat:"),
            counts=named("count:"),
        )
        columns = {name: Column(values, logged[name]) for name, values in named("column:").items()}
        return Recording(
            held_out=float(arrays["held_out"]),
            marks=tuple(arrays["marks"].tolist()),
            setup=msgspec.json.decode(arrays["setup"].tobytes(), type=OptimizerInfo),
            points=Points(arrays["step"], columns, samples=samples),
        )
