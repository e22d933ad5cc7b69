"""One training over two hosts and a daemon on a third; links that are cut; a script that knows nothing."""

import ctypes
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from optwatch.client import Client
from optwatch.wire.places import read_connection
from tests.daemons import GUARD, DaemonProcess
from tests.distributed.hosts import Hosts, permitted
from tests.distributed.jobs import START, started, the_run, until

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("unchanged.py")
EXAMPLE = ROOT / "examples" / "torchrun_two_hosts.sh"
CUT = 12.0
CLONE_NEWNET = 0x40000000
HANG = 20.0
"""Seconds after which the end of a rank hangs: ten times what it may take."""

needs_hosts = pytest.mark.skipif(bool(permitted()), reason=f"no network namespaces here: {permitted()}")


def plain(directory: Path, ranks: int, *options: str) -> list[dict[str, Any]]:
    """What the script ends with on its own, without optwatch."""
    directory.mkdir()
    torchrun = [
        "torchrun",
        "--standalone",
        f"--nproc-per-node={ranks}",
        str(SCRIPT),
        str(directory),
        *options,
    ]
    with started(torchrun, log=directory / "log") as (process,):
        assert process.wait(3 * START) == 0
    return results(directory, ranks)


def results(directory: Path, ranks: int) -> list[dict[str, Any]]:
    return [json.loads((directory / f"plain-{rank}.json").read_text()) for rank in range(ranks)]


def told(laps: list[list[float]]) -> str:
    """How long steps took, and of the slowest one, where the time went."""
    lasted = sorted(lap[1] for lap in laps)
    _, slowest, cpu, waited = max(laps, key=lambda lap: lap[1])
    return (
        f"{len(laps)} steps, median {1_000 * lasted[len(lasted) // 2]:.1f} ms,"
        f" p99 {1_000 * lasted[99 * len(lasted) // 100]:.1f} ms, slowest {1_000 * slowest:.1f} ms"
        f" ({1_000 * cpu:.1f} on a CPU, {1_000 * waited:.1f} ready without one)"
    )


def losses(client: Client, run: str, rank: int) -> list[float]:
    """All that the daemon has of one rank's loss, in order of step."""
    _, blocks = client.series(run, rank=rank, columns=("loss",))
    assert (blocks.step[1:] > blocks.step[:-1]).all()
    return [float(value) for value in blocks.values[:, 0]]


def test_an_unchanged_script_is_watched_under_torchrun(daemon: DaemonProcess, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    torchrun = [
        *("torchrun", "--standalone", "--nproc-per-node=2", "--no-python"),
        *("optwatch", "run", "--name", "unchanged", "--", str(SCRIPT), str(watched), "--steps", "60"),
    ]
    with started(torchrun, log=watched / "log") as (process,), daemon.client() as client:
        assert process.wait(START) == 0
        (run,) = client.runs()
        assert (run.name, run.world_size) == ("unchanged", 2)
        until(client, lambda c: c.status(run.run).steps_recorded == 60 or None, "60 steps")
        for rank, result in enumerate(results(watched, 2)):
            assert losses(client, run.run, rank) == result["losses"]


@contextmanager
def within(hosts: Hosts, host: int) -> Iterator[None]:
    """This thread on a host: what it connects to from now on it reaches through that host's link."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/var/run/netns/{hosts.name(host)}") as there:
        assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)


@contextmanager
def training(
    hosts: Hosts, directory: Path, nodes: list[list[str]]
) -> Iterator[tuple[Client, list[subprocess.Popen[bytes]]]]:
    """A command on each of two hosts, and a daemon on a third one, where its client is too."""
    directory.mkdir()
    daemon = DaemonProcess(directory / "daemon", prefix=tuple(hosts.on(2, [])))
    daemon.address = f"tcp://{hosts.address(2)}:47017"
    daemon.start()
    connection = read_connection()
    assert connection is not None
    environment = {
        "MASTER_ADDR": hosts.address(0),
        "GLOO_SOCKET_IFNAME": "eth0",
        "OPTWATCH_DAEMON": daemon.address,
        "OPTWATCH_DAEMON_KEY": connection.key,
    }
    try:
        with (
            started(
                *(hosts.on(host, node) for host, node in enumerate(nodes)),
                log=directory / "log",
                **environment,
            ) as processes,
            within(hosts, 2),
            daemon.client() as client,
        ):
            yield client, processes
    finally:
        print(daemon.text())
        daemon.kill()


@needs_hosts
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_link_to_the_daemon_that_is_cut_loses_nothing_and_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # no process that compiles beside the steps that are timed
    steps = 1_200
    options = ("--steps", str(steps), "--step-time", "0.02")
    alone = plain(tmp_path / "alone", 2, *options)
    directory = tmp_path / "job"
    script = [str(SCRIPT), str(directory), *options]
    nodes = [["env", f"NODE_RANK={node}", "sh", str(EXAMPLE), *script] for node in (0, 1)]
    with Hosts(3) as hosts, training(hosts, directory, nodes) as (client, processes):
        run = the_run(client)
        until(client, lambda c: c.status(run).control == "armed" or None, "an armed run", START)
        hosts.cut(2)
        cut = time.monotonic()
        time.sleep(CUT)
        healed = time.monotonic()
        hosts.heal(2)
        for process in processes:
            assert process.wait(200) == 0
        until(client, lambda c: c.status(run).steps_recorded == steps or None, "all steps", 2 * GUARD)
        assert client.status(run).gaps == ()
        for rank, result in enumerate(results(directory, 2)):
            assert losses(client, run, rank) == result["losses"]
            during = [lap for lap in result["laps"] if cut <= lap[0] < healed]
            apart = [lap for lap in result["laps"][1:] if not cut <= lap[0] < healed]
            assert during, "no step began while the link was cut"
            assert result["laps"][-1][0] > healed, "the training ended before the link was back"
            for what, laps in (
                ("nobody watches", alone[rank]["laps"][1:]),
                ("the link is there", apart),
                ("the link is cut", during),
            ):
                print(f"rank {rank}, while {what}: {told(laps)}")
            assert max(lap[1] for lap in during) < CUT / 2, "a step waited for the link"
    watched = results(directory, 2)
    assert [result["bits"] for result in watched] == [result["bits"] for result in alone]
    assert [result["losses"] for result in watched] == [result["losses"] for result in alone]


@needs_hosts
@pytest.mark.slow
@pytest.mark.timeout(700)
def test_when_the_hosts_lose_each_other_optwatch_lets_the_job_end(home: Path, tmp_path: Path) -> None:
    directory = tmp_path / "job"
    options = ("--nnodes=2", "--nproc-per-node=1", "--master-port=29500")
    script = ("-m", "tests.distributed.hardship", str(directory), "--patience", "5")
    with Hosts(3) as hosts:
        address = f"--master-addr={hosts.address(0)}"
        nodes = [["torchrun", f"--node-rank={node}", address, *options, *script] for node in (0, 1)]
        with training(hosts, directory, nodes) as (client, processes):
            run = the_run(client)
            until(client, lambda c: c.status(run).control == "armed" or None, "an armed run", START)
            client.act(run, "restart", {}, "under way at the cut")
            hosts.cut(1)
            assert all(process.wait(3 * GUARD) != 0 for process in processes)
    for rank in (0, 1):
        ended = json.loads((directory / f"rank-{rank}.json").read_text())
        print(f"rank {rank} let go in {ended['detach']:.2f} s: {ended['lost']}")
        assert ended["lost"]
        assert ended["detach"] < HANG
