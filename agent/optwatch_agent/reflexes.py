"""What the guard may do within a step, how often, and the norm to which it clips."""

from collections import deque
from collections.abc import Iterable

from optwatch.wire.actions import AUTO_LEAST, AUTO_OVER, usual_norm

REFLEXES = ("skip_nonfinite", "clip")
MOST_IN_A_ROW = 3
MOST_OF_LAST = 20
LAST = 1_000
"""Steps that are skipped at most: in a row, and of the last 1,000. More than that is no accident."""
REFRESH = 8
"""Steps between two looks at what is usual."""


class AdaptiveNorm:
    """A norm to clip to: exp(median + 4 MAD) of the logarithms of the last 200 gradient norms.

    Each counts as it was after the clip, so that a spike does not raise the limit for the next one.
    """

    def __init__(self, norms: Iterable[float] = (), limit: float | None = None) -> None:
        self.limit = limit
        """None as long as too few norms are known."""
        self._norms: deque[float] = deque(norms, maxlen=AUTO_OVER)
        self._seen = 0

    def see(self, norm: float) -> None:
        """Take account of a norm, after the clip. One that is 0 or not finite does not count."""
        if not 0 < norm < float("inf"):
            return
        self._norms.append(norm)
        self._seen += 1
        if len(self._norms) >= AUTO_LEAST and (self._seen % REFRESH == 0 or self.limit is None):
            self.limit = usual_norm(self._norms)
