"""What a detector remembers: plain, typed, bounded, and carried exactly through a save and a restore."""

from typing import Any, TypeVar

import msgspec

Memory = TypeVar("Memory", bound=msgspec.Struct)


def to_state(memory: msgspec.Struct) -> dict[str, Any]:
    """A copy of a memory as plain values that msgpack can carry."""
    state: dict[str, Any] = msgspec.to_builtins(memory)
    return state


def from_state(state: dict[str, Any], kind: type[Memory]) -> Memory:
    """The memory that `to_state` gave.

    Raises:
        ValueError: it is not a state of this kind.
    """
    try:
        return msgspec.convert(state, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a state of {kind.__qualname__}: {error}") from None


def push(window: list[float], value: float, size: int) -> None:
    """Append to a window of which `window[-size:]` is read. It never holds more than twice its size."""
    window.append(value)
    if len(window) >= 2 * size:
        del window[:-size]


def median(values: list[float]) -> float:
    """The median of finite values, NaN of none. For short windows quicker than numpy's."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return 0.5 * (ordered[middle - 1] + ordered[middle])


class Extent(msgspec.Struct):
    """The least and the greatest of the last values, kept in blocks so that a value costs O(1).

    It covers at least `blocks` x `size` values and at most one block more.
    """

    blocks: int
    size: int
    lows: list[float] = []
    highs: list[float] = []
    count: int = 0
    """Values in the newest block."""
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        if self.count == 0 or self.count == self.size:
            self.lows.append(value)
            self.highs.append(value)
            self.count = 0
            if len(self.lows) > self.blocks + 1:
                del self.lows[0], self.highs[0]
                self.low = min(self.lows)
                self.high = max(self.highs)
        elif value < self.lows[-1]:
            self.lows[-1] = value
        elif value > self.highs[-1]:
            self.highs[-1] = value
        self.count += 1
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
