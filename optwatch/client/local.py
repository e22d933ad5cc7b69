"""A local daemon for a client that found none."""

import os
import subprocess
import sys
import time

from optwatch.client.client import Client
from optwatch.client.errors import DaemonError, DaemonUnreachable
from optwatch.wire.places import state_dir

IDLE_EXIT = 600


def start_daemon(timeout: float = 20.0) -> str:
    """Start a daemon that outlives this process and ends after ten idle minutes; its address.

    Its log is `daemon.log` in the state directory.

    Raises:
        DaemonUnreachable: it did not come up in time, with the last line of its log.
    """
    log_path = state_dir() / "daemon.log"
    try:
        log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  our own module, no shell
                [sys.executable, "-m", "optwatch", "daemon", "--idle-exit", str(IDLE_EXIT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if k != "OPTWATCH_DAEMON"},
            )
    except OSError as error:
        raise DaemonUnreachable(f"cannot start a daemon: {error}") from None
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            with Client(timeout=1.0) as client:
                return client.address
        except DaemonError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    lines = log_path.read_text(errors="replace").splitlines()
    raise DaemonUnreachable(f"the daemon did not start: {lines[-1] if lines else 'it said nothing'}")
