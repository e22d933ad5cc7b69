"""Announcement: the connection file, by which agents and clients of this user find the daemon."""

import logging
import os
from types import TracebackType
from typing import Self

from optwatch.daemon.errors import StartError
from optwatch.wire.places import Connection, connection_file, read_connection, write_connection

log = logging.getLogger(__name__)


class Announcement:
    """There from `with` to its end. Of several daemons of a user the last one that started has it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._trouble = ""

    def __enter__(self) -> Self:
        """Raises `StartError` where the file cannot be written."""
        try:
            write_connection(self._connection)
        except OSError as error:
            raise StartError(f"cannot write {connection_file()}: {error.strerror}") from None
        return self

    def look(self) -> None:
        """Write it again where it is gone, as it is when a daemon that started later has ended."""
        if connection_file().exists():
            return
        try:
            write_connection(self._connection)
            self._trouble = ""
        except OSError as error:
            if self._trouble != str(error):
                log.warning("cannot write %s: %s", connection_file(), error.strerror)
            self._trouble = str(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away, unless another daemon's stands there."""
        there = read_connection()
        if there is not None and there.pid == os.getpid():
            connection_file().unlink(missing_ok=True)
