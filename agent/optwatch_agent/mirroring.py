"""Mirroring: what the daemon knows of the run, told to whom the script names, in a thread of its own.

The link's thread takes the daemon's news in; this one hands them on. A library that waits for a network
holds up neither the training nor the link: while it does, no more rows are asked for.
"""

import logging
import queue
import threading
from typing import Protocol

import msgspec

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.messages import MOST_NEWS, Follow, News

log = logging.getLogger("optwatch")

_BACKLOG = 4
"""News that may wait for a mirror before more are asked for."""
_FAILURES = 3
"""Exceptions of a mirror after which it is told nothing more."""
_PATIENCE = 2.0
"""Seconds that the end waits for the mirrors to have everything."""


class Mirror(Protocol):
    """Someone who is told."""

    columns: tuple[str, ...]
    """The columns of the series that it wants."""

    def take(self, news: News) -> None:
        """Take what is new. May raise and may wait; called by one thread."""
        ...


class Mirroring:
    """The mirrors of one attachment."""

    def __init__(self) -> None:
        self._mirrors: list[Mirror] = []
        self._failures: dict[int, int] = {}
        self._queue: queue.SimpleQueue[News | Mirror | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._columns: tuple[str, ...] = ()
        self._after = 0
        self._seen = 0
        self._known: dict[int | str, Finding | Command] = {}

    def add(self, mirror: Mirror, step: int) -> None:
        """Tell one more, of the rows after `step`. Called by the training thread."""
        columns = dict.fromkeys((*self._columns, *mirror.columns))
        self._columns = tuple(columns)[:MOST_NEWS]
        self._queue.put(mirror)
        if self._thread is None:
            self._after = step
            self._thread = threading.Thread(target=self._run, name="optwatch-mirror", daemon=True)
            self._thread.start()

    @property
    def known(self) -> list[Finding | Command]:
        """What the daemon has told, in no order; nothing where there is no mirror."""
        return list(self._known.values())

    def close(self, patience: float = _PATIENCE) -> None:
        """Hand on what has come, and end; after so many seconds the thread is left behind."""
        if self._thread is not None:
            self._queue.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join(patience)

    # --- the link's thread ----------------------------------------------------------------------------

    def follow(self, session: str) -> Follow | None:
        """What to ask the daemon for, None where there is no mirror or it is behind."""
        if self._thread is None or self._queue.qsize() > _BACKLOG:
            return None
        return Follow(session=session, columns=self._columns, after=self._after, seen=self._seen)

    def hear(self, news: News) -> None:
        """Take what the daemon says, each thing once: it may say it again."""
        self._seen = news.number
        findings = tuple(f for f in news.findings if self._known.get(f.id) != f)
        commands = tuple(c for c in news.commands if self._known.get(c.id) != c)
        self._known.update((finding.id, finding) for finding in findings)
        self._known.update((command.id, command) for command in commands)
        first = next((i for i, step in enumerate(news.steps) if step > self._after), len(news.steps))
        steps = news.steps[first:]
        if steps:
            self._after = steps[-1]
        if steps or findings or commands:
            self._queue.put(
                msgspec.structs.replace(
                    news, steps=steps, values=news.values[first:], findings=findings, commands=commands
                )
            )

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        told: dict[int | str, Finding | Command] = {}
        while (item := self._queue.get()) is not None:
            if isinstance(item, News):
                told.update((finding.id, finding) for finding in item.findings)
                told.update((command.id, command) for command in item.commands)
                for mirror in tuple(self._mirrors):
                    self._tell(mirror, item)
            else:
                self._mirrors.append(item)
                self._tell(item, _all(told))

    def _tell(self, mirror: Mirror, news: News) -> None:
        try:
            mirror.take(news)
        except Exception as error:  # noqa: BLE001 - of another library; told once, and the rest goes on
            failures = self._failures[id(mirror)] = self._failures.get(id(mirror), 0) + 1
            if failures == 1:
                log.warning("optwatch: %s failed: %s: %s", mirror, type(error).__name__, error)
            if failures >= _FAILURES:
                self._mirrors.remove(mirror)


def _all(told: dict[int | str, Finding | Command]) -> News:
    """What was told so far, for one that comes later."""
    return News(
        session="",
        number=0,
        findings=tuple(each for each in told.values() if isinstance(each, Finding)),
        commands=tuple(each for each in told.values() if isinstance(each, Command)),
    )
