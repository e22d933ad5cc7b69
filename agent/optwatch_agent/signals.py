"""Exceptions that are not ours: a signal handler of the script may raise while a hook of ours runs.

A time limit (SIGALRM), a job that has to end (SIGTERM) and a DataLoader's worker that died (SIGCHLD) are told
so. They are meant for the script, and whoever catches all exceptions keeps them from it.
"""

import inspect
from types import FrameType


def let_through(error: Exception) -> None:
    """Raise an exception again if a signal handler had raised it, as if no hook of ours had been there."""
    trace = error.__traceback__
    while trace is not None and (called := trace.tb_next) is not None:
        if _handles(called.tb_frame, trace.tb_frame):
            raise error
        trace = called


def _handles(frame: FrameType, interrupted: FrameType) -> bool:
    """Whether a function is a signal handler: no other is given the frame from which it is called.

    `signal.getsignal` would not know of one that has made way for another before it raised.
    """
    given = inspect.getargvalues(frame)
    values = [given.locals.get(name) for name in given.args]
    values += given.locals.get(given.varargs, ()) if given.varargs else ()
    return any(value is interrupted for value in values)
