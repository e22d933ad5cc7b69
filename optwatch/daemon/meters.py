"""Meters: the daemon's state over HTTP, `/metrics` for Prometheus and `/healthz` for whoever restarts it.

The HTTP server has threads of its own. All state belongs to the serving thread, so a request asks for a
reading and waits until that thread has taken one: a scrape that is answered shows that the daemon serves.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optwatch.daemon.errors import StartError
from optwatch.daemon.ingest import Ingest
from optwatch.daemon.runs import Runs
from optwatch.daemon.status import run_status
from optwatch.daemon.store import Store

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a request waits for the serving thread."""
FRESH = 0.5
"""Seconds for which one reading serves all who ask: many scrapers cost no more than one."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Meters:
    """Serves readings. `wanted` and `take` are the serving thread's, the rest the HTTP server's."""

    def __init__(self, where: tuple[str, int], ring: Callable[[], None]) -> None:
        """`ring` wakes the serving thread.

        Raises:
            StartError: the package is missing or the address cannot be had.
        """
        try:
            from optwatch.export import prometheus  # noqa: F401  the import is the check
        except ModuleNotFoundError:
            raise StartError("--metrics needs its extra: pip install 'optwatch[metrics]'") from None
        host, port = where
        try:
            self._server = make_server(host, port, self._answer, _Server, _Quiet)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(f"cannot serve metrics on {host}:{port}: {reason}") from None
        self.address = f"http://{host}:{self._server.server_port}/metrics"
        self._ring = ring
        self._asked = threading.Event()
        self._changed = threading.Condition()
        self._reading: Any = None
        self._taken = float("-inf")
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="optwatch-metrics", daemon=True
        )
        self._thread.start()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a reading."""
        return self._asked.is_set()

    def take(self, runs: Runs, store: Store, ingest: Ingest, now: float) -> None:
        """Take a reading. `now`: monotonic."""
        from optwatch.export.prometheus import Observed, Readings, Service

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
            self._reading = Readings(service, observed), store.trouble
            self._taken = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()

    def _latest(self) -> Any:
        """A fresh reading, None where the serving thread does not give one."""
        asked = time.monotonic()
        with self._changed:
            if asked - self._taken > FRESH:
                self._asked.set()
                self._ring()
                self._changed.wait_for(lambda: self._taken >= asked, PATIENCE)
            return self._reading if time.monotonic() - self._taken < PATIENCE else None

    def _answer(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        from prometheus_client import CollectorRegistry, make_wsgi_app

        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _say(start, "405 Method Not Allowed", "only GET")
        if path not in ("/metrics", "/healthz"):
            return _say(start, "404 Not Found", "/metrics or /healthz")
        if (latest := self._latest()) is None:
            return _say(start, "503 Service Unavailable", "the daemon does not answer")
        reading, trouble = latest
        if path == "/metrics":
            registry = CollectorRegistry(auto_describe=False)
            registry.register(reading)
            answer: Sequence[bytes] = make_wsgi_app(registry)(environ, start)
            return answer
        return _say(start, "503 Service Unavailable", trouble) if trouble else _say(start, "200 OK", "ok")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10
    """Seconds after which a client that sends nothing is let go."""

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _say(start: StartResponse, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
