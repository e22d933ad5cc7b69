"""Meters: the daemon's state over HTTP, `/metrics` for Prometheus and `/healthz` for whoever restarts it."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optwatch.daemon.errors import StartError
from optwatch.daemon.readout import Readout

log = logging.getLogger(__name__)

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Meters:
    """Serves readings, in threads of its own."""

    def __init__(self, where: tuple[str, int], readout: Readout) -> None:
        """Raises `StartError` where the package is missing or the address cannot be had."""
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
        self._readout = readout
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="optwatch-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        from prometheus_client import CollectorRegistry, make_wsgi_app

        from optwatch.export.prometheus import Readings

        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _say(start, "405 Method Not Allowed", "only GET")
        if path not in ("/metrics", "/healthz"):
            return _say(start, "404 Not Found", "/metrics or /healthz")
        if (reading := self._readout.latest()) is None:
            return _say(start, "503 Service Unavailable", "the daemon does not answer")
        trouble = reading.service.trouble
        if path == "/metrics":
            registry = CollectorRegistry(auto_describe=False)
            registry.register(Readings(reading))
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
