"""Many rows to few: buckets of minimum and maximum, so that no spike is lost on a chart."""

import numpy as np
import numpy.typing as npt

Steps = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Logged = npt.NDArray[np.bool_]


def reduce_rows(step: Steps, values: Values, logged: Logged, buckets: int) -> tuple[Steps, Values, Logged]:
    """Reduce step [n], values [n, C], logged [n, C] to two rows a bucket: its minimum, its maximum.

    Both rows carry the bucket's first step. Where nothing was logged the result is not logged. A NaN that
    was logged stays: the bucket's maximum becomes NaN, so that a chart can show where it was.
    With at most 2 × `buckets` rows nothing is done.
    """
    n = len(step)
    if n <= 2 * buckets:
        return step, values, logged
    starts = np.arange(buckets) * n // buckets
    low = np.minimum.reduceat(_fill(values, logged, np.inf), starts, axis=0)
    high = np.maximum.reduceat(_fill(values, logged, -np.inf), starts, axis=0)
    some = np.logical_or.reduceat(logged, starts, axis=0)
    nan = np.logical_or.reduceat(np.isnan(values) & logged, starts, axis=0)
    finite = np.logical_or.reduceat(logged & ~np.isnan(values), starts, axis=0)
    out_values = np.empty((2 * buckets, values.shape[1]))
    out_values[0::2] = np.where(finite, low, np.nan)
    out_values[1::2] = np.where(finite & ~nan, high, np.nan)
    return np.repeat(step[starts], 2), out_values, np.repeat(some, 2, axis=0)


def _fill(values: Values, logged: Logged, neutral: float) -> Values:
    return np.where(logged & ~np.isnan(values), values, neutral)
