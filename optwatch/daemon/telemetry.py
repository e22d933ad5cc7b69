"""Telemetry: the daemon's metrics to an OpenTelemetry collector, from a thread of its own.

A collector that cannot be reached costs the daemon nothing: the thread waits for it alone, says so once, and
tries again with the next period's reading.
"""

import logging
import os
import threading
import urllib.parse
from typing import TYPE_CHECKING

from optwatch.daemon.errors import StartError
from optwatch.daemon.readout import Readout

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

END = 2.0
"""Seconds that the end waits for what is being sent."""


class Telemetry:
    """Sends a reading each period: at once, then every `period` seconds ($OTEL_METRIC_EXPORT_INTERVAL)."""

    def __init__(self, url: str, readout: Readout) -> None:
        """`url`: the collector's, "" for the one that the environment names.

        Raises:
            StartError: the package is missing, or the settings cannot be used.
        """
        if url:
            _check(url)
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        if protocol != "http/protobuf":
            raise StartError(f"--otlp speaks http/protobuf, the environment asks for {protocol}")
        try:
            from optwatch.export.otel import Sender
        except ModuleNotFoundError:
            raise StartError("--otlp needs its extra: pip install 'optwatch[otel]'") from None
        self.period = _period()
        self.address = _shown(url) if url else "the collector that the environment names"
        # The SDK tells of each attempt; one line for each trouble is enough.
        self._heard = _Heard()
        theirs = logging.getLogger("opentelemetry")
        theirs.addHandler(self._heard)
        theirs.propagate = False
        self._readout = readout
        try:
            self._sender: Sender = Sender(url)
        except ValueError as error:  # older SDKs raise where the newer ones fall back
            raise StartError(f"--otlp cannot use what the environment says: {error}") from None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="optwatch-otlp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send no more."""
        self._ending.set()
        self._sender.close()
        self._thread.join(END)

    def _run(self) -> None:
        well = True
        while True:
            reading = self._readout.latest()
            if self._ending.is_set():
                return
            if reading is not None:
                self._heard.reason = ""
                sent = self._sender.send(reading)
                if not sent and well and not self._ending.is_set():
                    log.warning("metrics do not reach %s: %s", self.address, self._heard.reason)
                elif sent and not well:
                    log.info("metrics reach %s again", self.address)
                well = sent
            if self._ending.wait(self.period):
                return


class _Heard(logging.Handler):
    """Keeps what the SDK says instead of printing it: the first of it is the reason, the rest follows."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.reason = self.reason or record.getMessage()[:500]


def _check(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise StartError(f"{_shown(url)!r} is no URL of a collector: one looks like http://localhost:4318")


def _shown(url: str) -> str:
    """A URL without a password that may be in it."""
    return url.rpartition("@")[2] if "@" in url else url


def _period() -> float:
    """Seconds between two readings, from the SDK's own variable, in ms."""
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    try:
        period = float(text) / 1_000
    except ValueError:
        period = 0.0
    if not 0 < period < 1e6:
        raise StartError(f"$OTEL_METRIC_EXPORT_INTERVAL is {text!r}: it is a number of milliseconds")
    return period
