"""Fixtures of several files here. What needs an extra is imported by the test that has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemons import DaemonProcess

if TYPE_CHECKING:
    from tests.integration.test_serve import Served
    from tests.integration.test_tui_live import Training


@pytest.fixture
def served(daemon: DaemonProcess, home: Path) -> "Iterator[Served]":
    """`optwatch serve` on the daemon."""
    from tests.integration.test_serve import Served

    server = Served(home)
    yield server
    server.stop()


@pytest.fixture
def training(daemon: DaemonProcess) -> "Iterator[Training]":
    """A peer that sends steps to the daemon and does what it is told."""
    from tests.integration.test_tui_live import Training

    thread = Training(daemon.address)
    thread.start()
    yield thread
    thread.stop()
