"""The Python stack of a thread: where it is in which file and function, no source text and no values."""

import sys

from optwatch.wire.limits import MAX_NAME

MOST = 64
"""Calls that are told of, the innermost ones."""


def frames_of(thread: int | None) -> tuple[str, ...]:
    """ "file:line function" of each call of a thread, the innermost last; empty where there is none.

    Read by another thread while it runs, without a signal and without a stop.
    """
    frame = sys._current_frames().get(thread) if thread is not None else None
    frames: list[str] = []
    while frame is not None and len(frames) < MOST:
        code = frame.f_code
        place = f"{code.co_filename[-MAX_NAME:]}:{frame.f_lineno} {code.co_qualname}"
        frames.append(place[: 2 * MAX_NAME])
        frame = frame.f_back
    return tuple(reversed(frames))
