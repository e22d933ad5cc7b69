"""When the daemon should hear at once: a loss that is thrown out of the range of the last steps.

From the first sign of a divergence to a lost run it is often a few steps, fewer than pass between two
regular turns of the link. This only makes the link quick; what the loss means is for the daemon to say.
"""

import math

_FORGET = 0.01
"""Share of the range that a step without a new extreme takes off either end."""
_FEWEST = 10


class Range:
    """Highest and lowest value of the last hundred steps or so."""

    def __init__(self) -> None:
        self._count = 0
        self._low = math.inf
        self._high = -math.inf

    def left_by(self, value: float) -> bool:
        """Take the next value; whether it lies a whole range above it, or is not finite."""
        if not -math.inf < value < math.inf:
            return True
        high, low = self._high, self._low
        width = high - low
        left = self._count >= _FEWEST and value > high + width
        self._count += 1
        if width > 0:
            high -= _FORGET * width
            low += _FORGET * width
        self._high = value if value > high else high
        self._low = value if value < low else low
        return left
