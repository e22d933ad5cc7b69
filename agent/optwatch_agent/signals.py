"""Exceptions that are not ours: a signal handler of the script may raise while a hook of ours runs.

A time limit (SIGALRM), a job that has to end (SIGTERM) and a DataLoader's worker that died (SIGCHLD) are told
so. They are meant for the script, and whoever catches all exceptions keeps them from it.
"""

import functools
import inspect
import signal
from types import CodeType, FrameType
from typing import Any


def is_the_scripts(error: Exception) -> bool:
    """Whether a signal handler raised an exception that was caught in a hook."""
    handlers = _handlers()
    trace = error.__traceback__
    while trace is not None and (called := trace.tb_next) is not None:
        frame = called.tb_frame
        if frame.f_code in handlers or _was_given(frame, trace.tb_frame):
            return True
        trace = called
    return False


def let_through(error: Exception) -> None:
    """Raise an exception again if a signal handler had raised it, as if no hook of ours had been there."""
    if is_the_scripts(error):
        raise error


def _handlers() -> set[CodeType | None]:
    """The code of the signal handlers that are installed."""
    found: set[CodeType | None] = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        if callable(handler):
            call: Any = handler if hasattr(handler, "__code__") else type(handler).__call__
            found.add(getattr(call, "__code__", None))
    return found


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    """Whether a function was given the frame from which it is called, as signal handlers alone are: also one
    that has made way for another before it raised."""
    given = inspect.getargvalues(frame)
    values = [given.locals.get(name) for name in given.args]
    values += given.locals.get(given.varargs, ()) if given.varargs else ()
    return any(value is interrupted for value in values)
