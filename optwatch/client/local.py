"""A local daemon for a client that found none."""

import os
import sys
import time
from pathlib import Path

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
        process = _spawn(log_path)
    except OSError as error:
        raise DaemonUnreachable(
            f"cannot start a daemon, whose log would be {log_path}: {error.strerror}; set $XDG_STATE_HOME to "
            "a directory that can be written"
        ) from None
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            with Client(timeout=1.0) as client:
                return client.address
        except DaemonError:
            if os.waitpid(process, os.WNOHANG) != (0, 0):
                break
            time.sleep(0.05)
    lines = log_path.read_text(errors="replace").splitlines()
    raise DaemonUnreachable(f"the daemon did not start: {lines[-1] if lines else 'it said nothing'}")


def _spawn(log_path: Path) -> int:
    """Start it in a session of its own, so that neither Ctrl-C nor a closed terminal reaches it."""
    command = [sys.executable, "-m", "optwatch", "daemon", "--idle-exit", str(IDLE_EXIT)]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        {name: value for name, value in os.environ.items() if name != "OPTWATCH_DAEMON"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
