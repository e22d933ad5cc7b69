"""A run that turned NaN is brought back: every rank, at one step, to the bits that its snapshot was of."""

import math
from pathlib import Path

import pytest

from optwatch.client import Client
from tests.daemons import DaemonProcess
from tests.distributed.jobs import Job, armed_run, command, until


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, "fsdp"),
        pytest.param(2, "ddp", marks=pytest.mark.slow),
        pytest.param(4, "ddp", marks=pytest.mark.slow),
        pytest.param(4, "fsdp", marks=pytest.mark.slow),
        pytest.param(4, "hsdp", marks=pytest.mark.slow),
        pytest.param(2, "tp", marks=pytest.mark.slow),
        pytest.param(2, "zero", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_turned_nan_is_brought_back(
    ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    directory = tmp_path / "job"
    options = ("--layout", layout, "--journal", "1", "--snapshots", "1000000")
    with Job(directory, ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        taken = command(client, run, "snapshot", {})
        assert (taken.state, taken.ranks_applied) == ("applied", tuple(range(ranks))), taken
        until(client, lambda c: held(c, run, taken.step), "the snapshot on all ranks")
        (directory / "spoil").touch()
        until(client, lambda c: broken(c, run), "a loss that is NaN")
        done = command(client, run, "rollback", {"to_step": taken.step})
        assert (done.state, done.ranks_applied) == ("applied", tuple(range(ranks))), done
        assert done.step is not None
        until(client, lambda c: c.status(run).step > done.step + 20 or None, "20 steps more")
        status = client.status(run)
        assert status.loss is not None
        assert math.isfinite(status.loss)
        results = job.end()
    to = done.args["to_step"]
    journals = [bits_of(directory / f"journal-{rank}") for rank in range(ranks)]
    for bits in journals:
        assert bits[done.step] == bits[to], "not the bits of the snapshot"
        assert bits[done.step - 1] != bits[to]
    if layout == "ddp":
        assert len({bits[done.step] for bits in journals}) == 1
        assert len({result["bits"] for result in results}) == 1
    replicas: dict[str, set[str]] = {}
    for result in results:
        for key, digest in result["shards"].items():
            replicas.setdefault(key, set()).add(digest)
    assert {len(digests) for digests in replicas.values()} == {1}, "replicas differ"
    assert all(math.isfinite(x) for values in results[0]["parameters"].values() for x in flat(values))


def held(client: Client, run: str, step: int | None) -> bool | None:
    return step in client.status(run).snapshots or None


def broken(client: Client, run: str) -> bool | None:
    loss = client.status(run).loss
    return (loss is not None and not math.isfinite(loss)) or None


def bits_of(journal: Path) -> dict[int, str]:
    """The digest of all that a rank held after each step."""
    lines = [line.split() for line in journal.read_text().splitlines() if line.startswith("bits")]
    return {int(step): digest for _, step, digest in lines}


def flat(values: object) -> list[float]:
    if isinstance(values, list):
        return [x for each in values for x in flat(each)]
    assert isinstance(values, float)
    return [values]
