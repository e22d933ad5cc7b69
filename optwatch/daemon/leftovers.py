"""Takes in the queues that runs left behind when they ended without a daemon."""

import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from optwatch.daemon.ingest import Ingest
from optwatch.wire.frames import WireError
from optwatch.wire.leftovers import SUFFIX, leftovers_dir, read_messages

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks for new queues."""
BURST = 64
"""Messages taken in one turn, so that live agents do not wait."""
IDENTITY = b"queue"
"""Where answers to a queue would go: no socket has this routing id, they are dropped."""


class Leftovers:
    """One queue at a time, through the same ingest as an agent's; deleted when the store has it all."""

    def __init__(self, ingest: Ingest, user: str) -> None:
        self._ingest = ingest
        self._user = user
        self._next_look = 0.0
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._messages: Iterator[list[bytes]] = iter(())

    def tick(self, now: float) -> None:
        """Take in a little more."""
        if self._path is None and now >= self._next_look:
            self._next_look = now + LOOK
            self._open_next()
        if self._path is None:
            return
        try:
            for _ in range(BURST):
                if (parts := next(self._messages, None)) is None:
                    self._finish(self._path, now)
                    return
                self._ingest.take(IDENTITY, self._user, "agent", parts, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, not to be stumbled over again
            self._set_aside(self._path, error)

    def _set_aside(self, path: Path, error: Exception) -> None:
        log.warning("set the queue %s aside: %s", path, error)
        self._close()
        try:
            path.replace(path.with_suffix(".unreadable"))
        except OSError as failure:
            log.warning("cannot rename it, it will be tried again: %s", failure.strerror)

    def close(self) -> None:
        """Let go of a queue that is not done: the next daemon begins it anew and drops what it has."""
        self._close()

    def _open_next(self) -> None:
        for path in sorted(leftovers_dir().glob(f"*{SUFFIX}")):
            try:
                file = path.open("rb")
            except OSError as error:
                log.warning("cannot read the queue %s: %s", path, error.strerror)
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another daemon is at it
                file.close()
                continue
            self._path, self._file, self._messages = path, file, read_messages(file)
            return

    def _finish(self, path: Path, now: float) -> None:
        """All was read: delete it once it is committed, or read what was not taken once more."""
        session = self._ingest.sessions.get(path.stem)
        if session is None:
            raise WireError("it does not begin with a hello")
        if session.acked < session.received or not session.left:
            if self._file is not None and not session.unsettled and now >= self._next_look:
                self._next_look = now + LOOK
                self._file.seek(0)
                self._messages = read_messages(self._file)
            return
        path.unlink(missing_ok=True)
        log.info("took in what %s rank %d left behind", session.hello.name, session.hello.rank)
        self._close()
        self._next_look = 0.0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path, self._file, self._messages = None, None, iter(())
