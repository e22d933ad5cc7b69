"""Histograms as the definition has them, from whole arrays in float64."""

import numpy as np
import numpy.typing as npt

from optwatch.wire.histograms import LEAST, MOST, NONFINITE, POWERS, WIDTH, ZEROS


def counted(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """A row of `optwatch.wire.histograms`."""
    x = np.asarray(values, dtype=np.float64).ravel()
    row = np.zeros(WIDTH, dtype=np.int64)
    row[NONFINITE] = np.count_nonzero(~np.isfinite(x))
    x = x[np.isfinite(x)]
    row[ZEROS] = np.count_nonzero(x == 0)
    x = x[x != 0]
    power = np.clip(np.frexp(x)[1] - 1, LEAST, MOST) - LEAST
    np.add.at(row, np.where(x > 0, power + POWERS, power), 1)
    return row


def sparse(row: npt.NDArray[np.int64]) -> dict[str, int]:
    """The counts that are not 0, as JSON can hold them."""
    return {str(at): int(row[at]) for at in np.flatnonzero(row)}
