"""Series for the detectors' tests."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Column, Points, Samples

F8 = npt.NDArray[np.float64]


def points(first: int = 1, samples: Samples | None = None, **columns: object) -> Points:
    """Points at consecutive steps; every value of the columns was logged."""
    arrays: Mapping[str, F8] = {name: np.asarray(values, float) for name, values in columns.items()}
    n = len(next(iter(arrays.values())))
    return Points(
        step=np.arange(first, first + n, dtype=np.int64),
        columns={name: Column(values, np.ones(n, bool)) for name, values in arrays.items()},
        samples=samples,
    )


def chunks(whole: Points, sizes: Iterator[int]) -> Iterator[Points]:
    """The same points, cut into chunks of these sizes."""
    start = 0
    while start < len(whole):
        stop = min(start + next(sizes), len(whole))
        step = whole.step[start:stop]
        samples = whole.samples
        if samples is not None:
            keep = (samples.step >= step[0]) & (samples.step <= step[-1])
            samples = Samples(
                step=samples.step[keep],
                names=samples.names,
                numel=samples.numel,
                stats={name: block[keep] for name, block in samples.stats.items()},
                counts={name: block[keep] for name, block in samples.counts.items()},
            )
        yield Points(
            step=step,
            columns={
                name: Column(column.values[start:stop], column.logged[start:stop])
                for name, column in whole.columns.items()
            },
            samples=samples,
        )
        start = stop


def falling(n: int, seed: int = 0, start: float = 2.3, floor: float = 0.3, noise: float = 0.1) -> F8:
    """A loss that falls with a time constant of n/5 points, under log-normal noise."""
    noisy = np.random.default_rng(seed).normal(0, noise, n)
    fallen: F8 = (floor + (start - floor) * np.exp(-np.arange(n) / (n / 5))) * np.exp(noisy)
    return fallen
