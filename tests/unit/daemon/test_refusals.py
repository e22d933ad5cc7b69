"""Refusals: each kind of each peer is told, a flood is not."""

import time

import pytest

from optwatch.daemon import refusals
from optwatch.daemon.refusals import MOST, Refusals


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_same_of_the_same_peer_is_told_once_and_then_how_often(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Refusals()
    assert [noted.note("mallory", "no") for _ in range(500)] == [True] + [False] * 499
    assert noted.note("eve", "no")
    assert noted.note("mallory", "never")
    later = time.monotonic() + refusals.PERIOD
    monkeypatch.setattr(refusals.time, "monotonic", lambda: later)
    assert noted.note("mallory", "no")
    assert lines(caplog) == [
        "refused mallory: no",
        "refused eve: no",
        "refused mallory: never",
        "refused mallory: no (499 times more since it was told)",
    ]


def test_a_flood_of_peers_is_few_lines_and_little_memory(caplog: pytest.LogCaptureFixture) -> None:
    noted = Refusals()
    assert sum(noted.note(f"peer {number}", "no") for number in range(5_000)) == MOST
    assert len(lines(caplog)) == MOST
    assert len(noted._known) == refusals.MOST_KNOWN
