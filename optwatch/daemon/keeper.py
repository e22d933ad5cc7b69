"""Keeper: holds a store to its limits while the daemon serves, one run at a time, in a thread of its own.

Only runs that nobody is connected to and nobody has looked at lately are touched. The thread has a connection
of its own and takes the store for moments only, so that what agents send is committed in between.
"""

import logging
import queue
import sqlite3
import threading
import time

from optwatch.daemon.retention import Job, Limits, delete_run, next_job, used
from optwatch.daemon.runs import Runs
from optwatch.daemon.store import Store
from optwatch.daemon.tables import connect
from optwatch.daemon.thinning import thin_run

log = logging.getLogger(__name__)

LOOK = 600.0
"""Seconds between two looks while nothing is over its limit."""
PAGES = 2_000
"""Free pages given back to the file system after a job."""


class Keeper:
    """`tick` is called by the serving thread; the rest is the keeper's own thread."""

    def __init__(self, store: Store, runs: Runs, limits: Limits) -> None:
        self._store = store
        self._runs = runs
        self._limits = limits
        self._next = 0.0
        self._thinned: set[str] = set()
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._busy = threading.Event()
        self._thread = threading.Thread(target=self._run, name="optwatch-keeper", daemon=True)
        if limits:
            self._thread.start()

    def tick(self, now: float) -> None:
        """See what is due. `now`: monotonic."""
        if not self._limits or self._busy.is_set() or now < self._next:
            return
        rows = self._store.reader.execute("SELECT run, heard FROM run").fetchall()
        idle = [(run, heard) for run, heard in rows if self._runs.idle(run)]
        job = next_job(idle, self._thinned, used(self._store.reader), self._limits, time.time())
        if job is None:
            self._next = now + LOOK
            self._runs.note_heard(now)
            return
        log.info("retention: %s run %s: %s", job.do, job.run, job.why)
        self._store.audit(time.time(), "retention", job.run, job.do, job.why)
        if job.do == "delete":
            self._runs.drop(job.run)
        self._thinned.add(job.run)
        self._busy.set()
        self._jobs.put(job)

    def close(self) -> None:
        """End after the job at hand."""
        if self._limits:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        connection = connect(self._store.path)
        while (job := self._jobs.get()) is not None:
            try:
                if job.do == "delete":
                    delete_run(connection, job.run)
                else:
                    thin_run(connection, job.run)
                connection.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
            except (sqlite3.Error, ValueError) as error:
                log.error("retention: run %s: %s", job.run, error)
            self._busy.clear()
        connection.close()
