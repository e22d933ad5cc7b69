"""The subcommands against a real training: torch, the agent, the daemon, SQLite, TensorBoard's reader."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.daemons import DaemonProcess
from tests.integration.test_cli_runs import ask, optwatch

SCRIPT = """
import pathlib, sys, time
import torch
import optwatch

torch.set_num_threads(1)
torch.manual_seed(0)
inputs, targets = torch.randn(256, 8), torch.randn(256, 1)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
watch = optwatch.attach(optimizer, name="toy", config={"width": 16}, budget=0.2)  # sampled often enough
end = time.monotonic() + 90
while not pathlib.Path(sys.argv[1]).exists() and time.monotonic() < end:
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    time.sleep(0.002)  # the step time of a training that is worth watching
assert optimizer.param_groups[0]["lr"] == 1e-3
watch.detach()
"""


@pytest.fixture
def training(daemon: DaemonProcess, home: Path) -> Iterator[Path]:
    """A training that goes on until the file exists that is given to the test."""
    stop = home / "stop"
    script = home / "train.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script), str(stop)], env=os.environ.copy())
    try:
        end = time.monotonic() + 60
        while not ((runs := ask("runs")) and runs[0]["step"] >= 20):
            assert time.monotonic() < end, "the training did not appear"
            assert process.poll() is None
            time.sleep(0.1)
        yield stop
        stop.touch()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_training_obeys_and_its_history_comes_out(training: Path, home: Path) -> None:
    cut = ask("command", "toy", "scale_lr", "--factor", "0.5")
    assert (cut["state"], cut["ranks_applied"]) == ("applied", [0])
    assert ask("command", "toy", "restart", "--moments", "all")["step"] > cut["step"]
    assert ask("command", "toy", "clip", "--max-norm", "0.25")["state"] == "applied"
    status = ask("status", "toy")
    assert (status["lr"], status["lr_scale"], status["clip"]) == (pytest.approx(1e-3), 0.5, 0.25)
    assert ask("undo", "toy", "1")["state"] == "applied"
    assert ask("status", "toy")["lr_scale"] == 1
    optwatch("mark", "toy", "stage 2")
    reset = ask("command", "toy", "scale_lr", "--factor", "0.1")
    assert ask("command", "toy", "scale_lr", "--reset")["step"] > reset["step"]
    judged = ask("command", "toy", "clip", "--off", "--wait", "judged", "--timeout", "60")
    assert judged["state"] == "judged"
    assert judged["outcome"]["verdict"] in ("helped", "neutral", "hurt", "unclear")
    states = [command["state"] for command in ask("commands", "toy")]
    assert (states[0], set(states[1:]) <= {"applied", "judged"}) == ("undone", True)

    optwatch("export", "tensorboard", "toy", str(home / "logs"))
    (directory,) = (home / "logs").iterdir()
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    effective = {event.step: event.value for event in events.Scalars("optwatch/lr/effective")}
    assert effective[cut["step"] - 1] == pytest.approx(1e-3)
    assert effective[cut["step"]] == pytest.approx(5e-4)
    losses = events.Scalars("loss/train")
    steps = [event.step for event in losses]
    assert steps == list(range(1, len(steps) + 1))
    assert steps[-1] >= reset["step"]
    assert {"optwatch/grad_norm/global", "optwatch/ratio/update_param"} <= set(events.Tags()["scalars"])
    assert {"commands/1_scale_lr", "commands/2_restart", "commands/3_clip"} <= set(events.Tags()["tensors"])
