"""Keys and the connection file: one pair a user, and nobody else vouches for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optwatch.wire.places import Connection, read_connection, write_connection

SHOW = "from optwatch.wire.keys import key_pair; print(key_pair('user').public)"


def test_processes_that_begin_at_once_have_one_pair(home: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    shown = [process.communicate(timeout=60)[0] for process in started]
    assert len(set(shown)) == 1
    assert len(shown[0].strip()) == 40


def test_the_connection_file_of_another_user_is_not_believed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(address="tcp://127.0.0.1:1", publish="", key="", pid=1, store="")
    write_connection(connection)
    assert read_connection() == connection
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert read_connection() is None
