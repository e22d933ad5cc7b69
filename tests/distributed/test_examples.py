"""The examples for several processes, run as a user would run them."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optwatch.wire.requests import RunStatus
from tests.daemons import DaemonProcess
from tests.distributed.jobs import START

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(*command: str | Path, **environment: str) -> str:
    """Run it to a good end; what it said."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        command,
        env=found,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=2 * START)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, out + err
    assert "optwatch:" not in err, err
    return out


def only_run(daemon: DaemonProcess) -> RunStatus:
    with daemon.client() as client:
        (found,) = client.runs()
        return client.status(found.run)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_under_torchrun(name: str, daemon: DaemonProcess) -> None:
    said = run(*TORCHRUN, EXAMPLES / f"{name}.py", "--steps", "100", OPTWATCH_DAEMON=daemon.address)
    assert "step 100: loss" in said
    status = only_run(daemon)
    assert (status.name, status.world_size, status.state) == (f"digits-{name}", 2, "ended")
    assert status.steps_recorded == 100
    assert not status.gaps


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_slurm_and_started_anew_by_it_is_one_run(daemon: DaemonProcess, tmp_path: Path) -> None:
    """SLURM itself is not here: what it sets is, and srun and scontrol do what they would on one node."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "srun": 'exec "$@"',
        "scontrol": "echo 127.0.0.1",
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    script = EXAMPLES / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NNODES": "1",
        "SLURM_SUBMIT_DIR": str(EXAMPLES.parent),
        "OPTWATCH_DAEMON": daemon.address,
        "RENDEZVOUS_PORT": "0",
    }
    ddp = str(EXAMPLES / "ddp.py")
    run("bash", script, ddp, "--steps", "200", **environment)
    first = only_run(daemon)
    assert (first.world_size, first.steps_recorded, first.state) == (2, 200, "ended")
    run("bash", script, ddp, "--steps", "300", SLURM_RESTART_COUNT="1", **environment)
    again = only_run(daemon)
    assert (again.run, again.steps_recorded, again.state) == (first.run, 300, "ended")
    assert not again.gaps


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install --group integrations")
def test_under_ray_train(daemon: DaemonProcess) -> None:
    run(
        *(sys.executable, EXAMPLES / "ray_train.py", "--steps", "500"),
        OPTWATCH_DAEMON=daemon.address,
        RAY_TRAIN_V2_ENABLED="1",
        RAY_USAGE_STATS_ENABLED="0",
    )
    status = only_run(daemon)
    assert (status.name, status.world_size, status.state) == ("digits-ray", 2, "ended")
    assert status.steps_recorded == 500
