"""Readout: the daemon's state for threads that export it.

All state belongs to the serving thread, so an exporter asks for a reading and waits until that thread has
taken one: a reading that comes shows that the daemon serves.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from optwatch.daemon.ingest import Ingest
from optwatch.daemon.runs import Runs
from optwatch.daemon.status import run_status
from optwatch.daemon.store import Store

if TYPE_CHECKING:
    from optwatch.export.metrics import Reading

PATIENCE = 5.0
"""Seconds that an exporter waits for the serving thread."""
FRESH = 0.5
"""Seconds for which one reading serves all who ask: many scrapers cost no more than one."""


class Readout:
    """`wanted` and `take` are the serving thread's, `latest` the exporters'."""

    def __init__(self, ring: Callable[[], None]) -> None:
        """`ring` wakes the serving thread."""
        self._ring = ring
        self._asked = threading.Event()
        self._changed = threading.Condition()
        self._reading: Reading | None = None
        self._taken = float("-inf")

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a reading."""
        return self._asked.is_set()

    def take(self, runs: Runs, store: Store, ingest: Ingest, now: float) -> None:
        """Take a reading. `now`: monotonic."""
        from optwatch.export.metrics import Observed, Reading, Service

        self._asked.clear()
        states = {"live": 0, "stale": 0, "ended": 0}
        observed = []
        for run in runs.by_id.values():
            state = run.state(now)
            states[state] += 1
            if state == "live" and run.loaded:
                observed.append(
                    Observed(run_status(run, now), tuple(run.findings.values()), run.book.commands)
                )
        service = Service(states, dict(ingest.counts), store.backlog, store.trouble)
        with self._changed:
            self._reading = Reading(service, tuple(observed))
            self._taken = time.monotonic()
            self._changed.notify_all()

    def latest(self) -> "Reading | None":
        """A fresh reading, None where the serving thread does not give one."""
        asked = time.monotonic()
        with self._changed:
            if asked - self._taken > FRESH:
                self._asked.set()
                self._ring()
                self._changed.wait_for(lambda: self._taken >= asked, PATIENCE)
            return self._reading if time.monotonic() - self._taken < PATIENCE else None
