"""Spreads: counts for each power of two as the buckets of a histogram."""

import numpy as np
import numpy.typing as npt

from optwatch.wire.histograms import LEAST, MOST, POWERS, ZEROS

F8 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.unsignedinteger]

_POWERS = np.arange(LEAST, MOST + 1, dtype=np.float64)


def value_buckets(row: Counts) -> F8:
    """The elements by value: f8[k, 3] of left edge, right edge, count, without gaps and in order.

    `row` is one of `wire.histograms`. The bucket around 0 holds the zeros, and reaches to the smallest powers
    that any element has. Elements that are not finite are in none. k is 0 where there is nothing.
    """
    below, above = row[:POWERS].astype(np.float64), row[POWERS:ZEROS].astype(np.float64)
    used = np.flatnonzero(below + above)
    if not len(used):
        return np.array([[0.0, 0.0, row[ZEROS]]]) if row[ZEROS] else np.empty((0, 3))
    kept = slice(used[0], used[-1] + 1)
    left, right = 2.0 ** _POWERS[kept], 2.0 ** (_POWERS[kept] + 1)
    negative = np.stack([-right, -left, below[kept]], axis=1)[::-1]
    middle = [[-left[0], left[0], float(row[ZEROS])]]
    return _trim(np.concatenate([negative, middle, np.stack([left, right, above[kept]], axis=1)]))


def log2_buckets(row: Counts) -> F8:
    """The elements by log2 of their magnitude, zeros left out: f8[k, 3] as `value_buckets`."""
    counts = (row[:POWERS].astype(np.float64) + row[POWERS:ZEROS]).astype(np.float64)
    return _trim(np.stack([_POWERS, _POWERS + 1, counts], axis=1))


def _trim(buckets: F8) -> F8:
    """Without the empty buckets at both ends."""
    used = np.flatnonzero(buckets[:, 2])
    return buckets[used[0] : used[-1] + 1] if len(used) else buckets[:0]
