"""A clock for what is timed out: the wall clock may be set, and must not expire a command by that."""

import time

_BEGAN = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def steady() -> float:
    """Unix seconds as of this process's start, moved on by a clock that nobody sets and that counts sleep."""
    return _BEGAN + time.clock_gettime(time.CLOCK_BOOTTIME)
