"""The subcommands that ask and act, against a real daemon."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from optwatch.cli import main
from optwatch.wire.messages import Prepare
from tests.daemons import DaemonProcess
from tests.peers import AgentPeer


@dataclass(frozen=True)
class Said:
    stdout: str
    stderr: str


def optwatch(*arguments: str, expect: int = 0) -> Said:
    """Run a subcommand in this process: a hundred starts of Python would take a minute."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status: object = main(arguments)
        except SystemExit as error:  # argparse
            status = error.code
    assert status == expect, (status, out.getvalue(), err.getvalue())
    return Said(out.getvalue(), err.getvalue())


def ask(*arguments: str, expect: int = 0) -> Any:
    return json.loads(optwatch(*arguments, "--json", expect=expect).stdout)


@pytest.fixture
def peer(daemon: DaemonProcess) -> Iterator[AgentPeer]:
    """One rank with 300 steps of a healthy training, all of it in the store."""
    peer = AgentPeer(daemon.address, name="digits")
    peer.greet()
    steps = np.arange(1, 301)
    noise = np.random.default_rng(0).normal(0, 0.01, 300)
    for start in range(0, 300, 50):
        part = slice(start, start + 50)
        loss = 0.3 + 3 / np.sqrt(steps[part] + 10) + noise[part]
        full = np.full(50, 1.0)
        peer.batch(np.stack([loss, full + noise[part], full * 0.01, full * 1e-3], axis=1))
    peer.beat()
    try:
        peer.wait_acked()
        yield peer
    finally:
        peer.close()


class Obedient(threading.Thread):
    """Answers each command as an agent does, until it is told to end."""

    def __init__(self, peer: AgentPeer, state: str = "applied") -> None:
        super().__init__(daemon=True)
        self.peer, self.state, self.ended = peer, state, threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            message = self.peer.receive(0.1)
            self.peer.beat()
            if isinstance(message, Prepare):
                self.peer.report(message, self.state, step=self.peer.step + 1, reason=self.reason)

    @property
    def reason(self) -> str:
        return "" if self.state == "applied" else "the optimizer keeps its moments elsewhere"

    def __enter__(self) -> "Obedient":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(20)


def test_runs_and_status_say_what_the_contract_promises(peer: AgentPeer) -> None:
    (run,) = ask("runs")
    assert (run["run"], run["name"], run["state"], run["step"]) == (peer.run, "digits", "live", 300)
    status = ask("status", "digits")
    assert status["run"] == peer.run
    assert {"world_size", "ranks", "gaps", "mode", "control", "loss", "lr", "grad_norm", "overhead"} <= set(
        status
    )
    assert (status["steps_recorded"], status["gaps"], status["mode"]) == (300, [], "advise")
    assert status["lr"] == pytest.approx(1e-3)
    assert [rank["rank"] for rank in status["ranks"]] == [0]
    assert ask("status", peer.run[:8])["run"] == peer.run
    assert ask("findings", "digits") == []
    assert ask("commands", "digits") == []


def test_the_tables_are_plain_where_nobody_sees_colours(peer: AgentPeer) -> None:
    lines = optwatch("runs").stdout.splitlines()
    assert lines[0].split() == ["NAME", "RUN", "STATE", "STEP", "LOSS", "RATE", "RANKS", "STARTED", "WORST"]
    assert lines[1].startswith(f"digits  {peer.run[:8]}  ● live")
    assert "\x1b" not in "".join(lines)
    told = optwatch("status", "digits").stdout
    for text in ("digits", "control", "armed", "300 steps", "Adam, 2 tensors, 110 elements", "RANK  LINK"):
        assert text in told
    assert "nothing found" in optwatch("findings", "digits").stdout
    assert "no commands" in optwatch("commands", "digits").stdout


def test_a_command_by_hand_is_waited_for(peer: AgentPeer) -> None:
    with Obedient(peer):
        command = ask("command", "digits", "scale_lr", "--factor", "0.5", "--ramp", "10", "--why", "a try")
        assert (command["state"], command["step"], command["ranks_applied"]) == ("applied", 301, [0])
        assert (command["action"], command["args"]) == ("scale_lr", {"factor": 0.5, "ramp": 10})
        assert command["why"] == "a try"
        assert (
            "✓ applied  2 restart: applied on 1 of 1 ranks at step 301"
            in optwatch("command", "digits", "restart").stdout
        )
        undone = ask("undo", "digits", "1")
        assert (undone["undo_of"], undone["state"]) == ("1", "applied")
    listed = ask("commands", "digits")
    assert [(c["id"], c["state"]) for c in listed] == [("1", "undone"), ("2", "applied"), ("3", "applied")]
    assert {"id", "action", "args", "state", "asked_by", "why", "step", "ranks_applied", "outcome"} <= set(
        listed[0]
    )
    assert "scale_lr factor=0.5 ramp=10" in optwatch("commands", "digits").stdout


def test_a_command_that_is_not_applied_exits_with_1(peer: AgentPeer) -> None:
    with Obedient(peer, state="refused"):
        refused = ask("command", "digits", "restart", expect=1)
        assert (refused["state"], refused["reason"]) == (
            "refused",
            "rank 0: the optimizer keeps its moments elsewhere",
        )
    told = optwatch("command", "digits", "clip", "--max-norm", "1", "--timeout", "0.5", expect=1).stdout
    assert "still sent after 0.5 s" in told


def test_what_the_run_does_not_allow_is_refused(daemon: DaemonProcess) -> None:
    peer = AgentPeer(daemon.address, name="locked", allow=())
    peer.greet()
    peer.beat()
    refused = ask("command", "locked", "restart", expect=1)
    assert refused["state"] == "refused"
    assert "not allowed" in refused["reason"]
    assert "refused" in optwatch("command", "locked", "restart", expect=1).stdout
    peer.close()


def test_mode_and_mark(peer: AgentPeer) -> None:
    optwatch("mode", "digits", "auto")
    assert ask("status", "digits")["mode"] == "auto"
    assert "marked at step 300: stage 2" in optwatch("mark", "digits", "stage 2").stdout


def diverge(peer: AgentPeer, sampled: bool = False) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, 20)
    full = np.full(20, 1.0)
    peer.batch(np.stack([9 + noise, 900 * (full + noise), full * 0.01, full * 1e-3], axis=1), sampled=sampled)
    peer.beat()
    peer.wait_acked()


def settled(*arguments: str) -> list[Any]:
    """The list, asked for until it is not empty."""
    for _ in range(60):
        if found := ask(*arguments):
            return list(found)
    raise AssertionError(f"{arguments} stayed empty")


def test_a_divergence_is_found_proposed_and_approved(peer: AgentPeer) -> None:
    diverge(peer)
    findings = settled("findings", "digits")
    worst = next(f for f in findings if f["severity"] == "critical")
    assert worst["kind"] == "divergence"
    assert {"summary", "evidence", "causes", "remedies", "onset_step", "resolved_step"} <= set(worst)
    assert "✖  " in optwatch("findings", "digits").stdout
    (proposed,) = settled("commands", "digits")
    assert (proposed["action"], proposed["state"], proposed["asked_by"]) == ("restart", "proposed", "policy")
    with Obedient(peer):
        assert ask("approve", "digits", "1")["state"] == "applied"
    assert "not proposed" in optwatch("approve", "digits", "1", expect=2).stderr


def test_a_proposal_can_be_dismissed(peer: AgentPeer) -> None:
    diverge(peer)
    settled("commands", "digits")
    assert "dismissed" in optwatch("dismiss", "digits", "1", "--reason", "on purpose").stdout
    (command,) = ask("commands", "digits")
    assert (command["state"], command["reason"]) == ("dismissed", "on purpose")


WRONG = [
    (["status", "nothere"], "there are digits"),
    (["command", "digits", "scale_lr"], "needs either a factor"),
    (
        ["command", "digits", "scale_lr", "--max-norm", "1"],
        "takes --factor, --ramp, --reset, not --max-norm",
    ),
    (["command", "digits", "scale_lr", "--factor", "-1"], "factor"),
    (["command", "digits", "clip", "--max-norm", "x"], "neither a number nor auto"),
    (["command", "digits", "explode"], "choose from"),
    (["command", "digits", "scale_lr", "--factor", "0.001"], "under"),
    (["approve", "digits", "7"], "no command 7"),
    (["undo", "digits", "7"], "no command 7"),
    (["dismiss", "digits", "7"], "no command 7"),
    (["mode", "digits", "sometimes"], "choose from"),
    (["export", "tensorboard", "nothere", "out"], "there are digits"),
]


def test_wrong_use_is_said_in_one_sentence(peer: AgentPeer) -> None:
    for arguments, says in WRONG:
        assert says in optwatch(*arguments, expect=2).stderr.splitlines()[-1], arguments


@pytest.mark.parametrize(
    "arguments", [["runs"], ["status", "x"], ["command", "x", "restart"], ["mark", "x", "y"]]
)
def test_without_a_daemon_it_says_how_to_start_one(home: Path, arguments: list[str]) -> None:
    result = optwatch(*arguments, expect=2)
    assert len(result.stderr.splitlines()) == 1
    assert "start one with `optwatch daemon`" in result.stderr


def test_an_export_can_be_repeated_and_needs_no_daemon(
    daemon: DaemonProcess, peer: AgentPeer, home: Path
) -> None:
    diverge(peer, sampled=True)
    settled("findings", "digits")
    optwatch("export", "tensorboard", "digits", str(home / "logs"))
    peer.bye()
    peer.wait_acked()
    assert daemon.stop() == 0
    told = optwatch("export", "tensorboard", "digits", str(home / "logs")).stdout
    directory = home / "logs" / f"digits-{peer.run[:8]}"
    assert str(directory) in told
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    losses = events.Scalars("loss/train")
    assert [event.step for event in losses] == list(range(1, 321))
    assert losses[0].wall_time == pytest.approx(1e9 + 0.01)
    assert [event.step for event in events.Scalars("optwatch/moment/exp_avg_rms")] == [320]
    assert any(tag.startswith("findings/") for tag in events.Tags()["tensors"])
    assert "_hparams_/session_start_info" in events.Tags()["tensors"]


def test_an_export_without_a_store_says_so(home: Path) -> None:
    result = optwatch("export", "tensorboard", "digits", "out", "--store", str(home / "none"), expect=2)
    assert "there is no store in" in result.stderr


def test_it_is_the_same_as_a_process(peer: AgentPeer) -> None:
    command = [sys.executable, "-m", "optwatch", "status", "nothere"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "optwatch status: there is no run 'nothere': there are digits\n"


def test_a_dry_run_tells_what_each_action_would_do_and_does_nothing(peer: AgentPeer) -> None:
    said = optwatch("command", "digits", "scale_lr", "--factor", "0.5", "--ramp", "50", "--dry-run").stdout
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines == [
        "scale_lr factor=0.5 ramp=50",
        "changes: the LR scale: × 1 → × 0.5, over 50 steps",
        "learning rate: 0.001 → 5e-4; the schedule goes on",
        "optimizer: Adam, 1 group, 2 tensors",
        "on: its one process",
        "from: the next step after 300",
        "to undo: optwatch undo restores the former scale",
    ]
    for action, options in (
        ("restart", ("--moments", "first", "--warmup", "9")),
        ("clip", ("--max-norm", "auto")),
        ("perturb", ("--std", "0.1")),
        ("rollback", ("--to-step", "128")),
        ("snapshot", ()),
        ("stop", ()),
    ):
        allowed = action in ("restart", "clip")
        told = ask("command", "digits", action, *options, "--dry-run", expect=0 if allowed else 1)
        assert {"changes", "on", "from", "to undo"} <= told["effects"].keys()
        assert (told["obstacle"] is None) == allowed
        assert allowed or f"this run does not allow {action}" in told["obstacle"]
    assert ask("commands", "digits") == []
