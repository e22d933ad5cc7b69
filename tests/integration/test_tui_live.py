"""The terminal UI on a real daemon, with a real training and with a peer that speaks for an agent."""

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot

from optwatch.client import Client
from optwatch.wire.actions import Command
from optwatch.wire.requests import Act
from optwatch_tui.app import OptwatchApp
from optwatch_tui.daemon_feed import DaemonFeed
from optwatch_tui.model import Snapshot
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.screens.runs import RunsScreen
from tests.daemons import GUARD, DaemonProcess
from tests.peers import AgentPeer


@asynccontextmanager
async def live(run: str | None = None, readonly: bool = False) -> AsyncIterator[Pilot[None]]:
    app = OptwatchApp(DaemonFeed(), run=run, readonly=readonly)
    async with app.run_test(size=(120, 40)) as pilot:
        yield pilot


async def until(pilot: Pilot[None], true: Callable[[], object], what: str) -> None:
    """Wait for what has to come; the guard only ends what hangs."""
    end = time.monotonic() + 2 * GUARD
    while not true():
        assert time.monotonic() < end, f"{what} did not come; the screen:\n{text(pilot)}"
        await pilot.pause(0.05)


def text(pilot: Pilot[None]) -> str:
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def snapshot(pilot: Pilot[None]) -> Snapshot | None:
    found = pilot.app.snapshot  # type: ignore[attr-defined]
    assert found is None or isinstance(found, Snapshot)
    return found


def by_hand(client: Client, run: str) -> list[Command]:
    """The run's commands, without what the policy proposed."""
    return [command for command in client.commands(run) if command.asked_by != "policy"]


class Training(threading.Thread):
    """A peer that sends steps, and applies what it is told, until it is stopped."""

    def __init__(self, address: str, name: str = "toy") -> None:
        super().__init__(daemon=True)
        allow = ("restart", "scale_lr", "clip", "stop")
        self.peer = AgentPeer(address, name=name, tensors=6, allow=allow)
        self.stopped = threading.Event()
        self.diverging = threading.Event()

    def run(self) -> None:
        self.peer.greet()
        rng = np.random.default_rng(0)
        while not self.stopped.is_set():
            usual = [9.0, 900.0, 0.01, 1e-3] if self.diverging.is_set() else [2.0, 0.5, 0.01, 1e-3]
            values = np.array(usual) * (1 + 0.005 * rng.random(size=(5, 4)))
            self.peer.batch(values, sampled=True)
            self.peer.beat()
            end = time.monotonic() + 0.1
            while (left := end - time.monotonic()) > 0:
                self.peer.receive(left)
            for prepare in self.peer.prepares:
                self.peer.report(prepare, "applied", step=self.peer.step + 1)
                self.diverging.clear()
            self.peer.prepares.clear()
        self.peer.bye()
        self.peer.close()

    def stop(self) -> None:
        self.stopped.set()
        self.join(GUARD)


async def test_a_run_appears_and_grows(training: Training) -> None:
    async with live() as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen), "the run's screen")
        await until(pilot, lambda: snapshot(pilot), "the view")
        first = snapshot(pilot)
        assert first is not None
        await until(
            pilot,
            lambda: (
                (now := snapshot(pilot)) is not None and len(now.columns.step) > len(first.columns.step) + 20
            ),
            "more steps",
        )
        now = snapshot(pilot)
        assert now is not None
        assert np.array_equal(now.columns.step, np.arange(1, len(now.columns.step) + 1))
        assert len(now.samples.tensors) == 6
        assert "toy" in text(pilot)
        assert "live" in text(pilot)


async def test_runs_are_glanced_at_and_compared(training: Training, daemon: DaemonProcess) -> None:
    other = Training(daemon.address, name="other")
    other.start()
    try:
        async with live() as pilot:
            await until(pilot, lambda: snapshot(pilot), "the view")
            await pilot.press("escape")
            app = pilot.app
            assert isinstance(app, OptwatchApp)
            await until(pilot, lambda: len(app.glances) == 2, "a glance of both")
            assert all(len(glance.loss) > 0 for glance in app.glances.values())
            await pilot.press("space", "space", "c")
            await until(pilot, lambda: len(app.compared) == 2, "both runs to compare")
            assert {run.status.name for run in app.compared} == {"toy", "other"}
            steps = sum(len(run.columns.step) for run in app.compared)
            await until(
                pilot, lambda: sum(len(run.columns.step) for run in app.compared) > steps, "further steps"
            )
            assert "2 toy" in text(pilot) or "1 toy" in text(pilot)
    finally:
        other.stop()


async def test_an_action_goes_its_whole_way_and_back(training: Training, daemon: DaemonProcess) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        await pilot.press("l")
        assert "scale the learning rate?" in text(pilot)
        await pilot.press("y")
        await until(pilot, lambda: "LR × 0.5 applied at step" in text(pilot), "the word that it was applied")
        await until(pilot, lambda: snapshot(pilot).status.lr_scale == 0.5, "the scale")  # type: ignore[union-attr]
        await pilot.press("u", "y")
        await until(pilot, lambda: snapshot(pilot).status.lr_scale == 1, "the former scale")  # type: ignore[union-attr]
        with daemon.client() as client:
            first, second = by_hand(client, training.peer.run)
        assert (first.action, first.args, first.state) == ("scale_lr", {"factor": 0.5}, "undone")
        assert (second.undo_of, second.state) == (first.id, "applied")


async def proposed(pilot: Pilot[None], training: Training) -> Command:
    """The proposal that the daemon makes when the training diverges."""
    await until(pilot, lambda: (now := snapshot(pilot)) and now.status.step > 300, "a trend to differ from")
    training.diverging.set()
    await until(pilot, lambda: snapshot(pilot).proposals, "a proposal")  # type: ignore[union-attr]
    return snapshot(pilot).proposals[0]  # type: ignore[union-attr]


async def test_a_proposal_is_approved_applied_and_judged(training: Training, daemon: DaemonProcess) -> None:
    async with live() as pilot:
        command = await proposed(pilot, training)
        await until(pilot, lambda: "a approve" in text(pilot).splitlines()[1], "the call for an answer")
        await pilot.press("a")
        assert "approve the proposal?" in text(pilot)
        await pilot.press("y")
        await until(pilot, lambda: "applied at step" in text(pilot), "the word that it was applied")

        def now() -> Command:
            return next(c for c in snapshot(pilot).commands if c.id == command.id)  # type: ignore[union-attr]

        await until(pilot, lambda: now().state == "judged", "the outcome")
        assert now().outcome is not None
        await pilot.press("j")
        verdict = now().outcome.verdict  # type: ignore[union-attr]
        await until(pilot, lambda: f"outcome    {verdict}" in text(pilot), "the outcome in the ledger")


async def test_a_proposal_is_dismissed_with_a_reason(training: Training, daemon: DaemonProcess) -> None:
    async with live() as pilot:
        command = await proposed(pilot, training)
        await pilot.press("d", "tab", *"on purpose", "enter")
        await until(
            pilot,
            lambda: (
                next(c for c in snapshot(pilot).commands if c.id == command.id).state == "dismissed"  # type: ignore[union-attr]
            ),
            "the dismissal",
        )
        await pilot.press("j")
        await until(pilot, lambda: "on purpose" in text(pilot), "the reason in the ledger")


async def test_what_the_daemon_refuses_is_said(training: Training) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        pilot.app.feed.ask(Act(run=training.peer.run, action="explode", args={}))  # type: ignore[attr-defined]
        await until(pilot, lambda: "explode" in text(pilot), "the refusal")


async def test_a_killed_daemon_is_shown_and_its_return_elsewhere_heals(
    training: Training, daemon: DaemonProcess
) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        daemon.kill()
        await until(pilot, lambda: "lost" in text(pilot).splitlines()[0], "the word that the link is lost")
        await pilot.press("l")
        assert "no link to the daemon" in text(pilot)
        daemon.address = "tcp://127.0.0.1:0"  # another port
        daemon.start()
        await until(pilot, lambda: "lost" not in text(pilot).splitlines()[0], "the link")
        await until(pilot, lambda: daemon.address in pilot.app.link.address, "the new address")  # type: ignore[attr-defined]
        now = snapshot(pilot)
        assert now is not None
        assert len(now.columns.step) > 0


async def test_a_daemon_that_was_stopped_is_shown_as_that_until_it_is_back(
    training: Training, daemon: DaemonProcess
) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        daemon.stop()
        told: list[str] = []

        def several() -> bool:
            told.append(pilot.app.link.reason)  # type: ignore[attr-defined]
            return len({*told}) > 1 and told.count("the daemon has stopped: it was told to end") > 60

        await until(pilot, several, "the word that it was stopped")
        assert set(told[told.index("the daemon has stopped: it was told to end") :]) == {told[-1]}
        daemon.start()
        await until(pilot, lambda: "lost" not in text(pilot).splitlines()[0], "the link")


async def test_a_daemon_that_hangs_is_shown_and_heals_without_a_word(
    training: Training, daemon: DaemonProcess
) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        await until(pilot, lambda: "lost" in text(pilot).splitlines()[0], "the word that the link is lost")
        await pilot.press("f", "j", "escape", "k", "s", "escape", "plus", "0")  # nothing is frozen
        assert "lost" in text(pilot).splitlines()[0]
        daemon.process.send_signal(signal.SIGCONT)
        await until(pilot, lambda: "lost" not in text(pilot).splitlines()[0], "the link")
        now = snapshot(pilot)
        assert now is not None
        steps = now.status.step
        await until(pilot, lambda: snapshot(pilot).status.step > steps, "further steps")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keys", "action", "args"),
    [
        (("r", "tab", "right", "enter"), "restart", {"moments": "first"}),
        (("l", "tab", *["backspace"] * 3, *"0.25", "enter"), "scale_lr", {"factor": 0.25}),
        (("c", "tab", *["backspace"] * 4, *"0.7", "enter"), "clip", {"max_norm": 0.7}),
        (("x", "end", "enter", "enter"), "stop", {}),
    ],
    ids=["restart", "scale_lr", "clip", "stop"],
)
async def test_every_action_goes_from_key_to_ledger(
    training: Training, daemon: DaemonProcess, keys: tuple[str, ...], action: str, args: dict[str, object]
) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        await pilot.press(*keys)
        await until(pilot, lambda: "applied at step" in text(pilot), "the word that it was applied")
        with daemon.client() as client:
            (command,) = by_hand(client, training.peer.run)
        assert (command.action, command.args, command.ranks_applied) == (action, args, (0,))
        await pilot.press("j", "end")
        await until(pilot, lambda: f"at step {command.step:,}" in text(pilot), "the entry in the ledger")
        assert "by hand in the terminal UI" in text(pilot)


async def test_a_mark_and_a_mode_reach_the_run(training: Training, daemon: DaemonProcess) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        await pilot.press("M", *"stage 2", "enter")
        await until(pilot, lambda: any(m.text == "stage 2" for m in snapshot(pilot).markers), "the mark")  # type: ignore[union-attr]
        await pilot.press("m", "down", "y")
        await until(pilot, lambda: snapshot(pilot).status.mode == "auto", "the mode")  # type: ignore[union-attr]


async def test_history_goes_on_where_the_daemon_was_restarted(
    training: Training, daemon: DaemonProcess
) -> None:
    async with live() as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        daemon.restart()
        training.peer.send(training.peer.hello)
        training.peer.send(training.peer.schema)
        training.peer.resend()
        before = snapshot(pilot)
        assert before is not None
        await until(
            pilot,
            lambda: (
                (now := snapshot(pilot)) is not None and now.columns.step[-1] > before.columns.step[-1] + 20
            ),
            "more steps",
        )


async def test_read_only_sends_nothing(training: Training, daemon: DaemonProcess) -> None:
    async with live(readonly=True) as pilot:
        await until(pilot, lambda: snapshot(pilot), "the view")
        for key in "rlcadum":
            await pilot.press(key)
            assert isinstance(pilot.app.screen, RunScreen)
        await pilot.pause(0.5)
        with daemon.client() as client:
            assert by_hand(client, training.peer.run) == []


async def test_a_run_is_opened_by_name_as_soon_as_there_is_one(daemon: DaemonProcess) -> None:
    async with live(run="late") as pilot:
        await until(pilot, lambda: pilot.app.link.state == "live", "the link")  # type: ignore[attr-defined]
        thread = Training(daemon.address, name="late")
        thread.start()
        try:
            await until(pilot, lambda: snapshot(pilot) and "late" in text(pilot), "the run")
        finally:
            thread.stop()


async def test_without_a_daemon_one_is_started_that_outlives_the_terminal(home: Path) -> None:
    async with live() as pilot:
        await until(pilot, lambda: pilot.app.link.state == "live", "a daemon")  # type: ignore[attr-defined]
        assert isinstance(pilot.app.screen, RunsScreen)
        assert "optwatch.attach(optimizer)" in text(pilot)
    with Client(timeout=GUARD) as client:
        assert client.runs() == ()
        client.stop()


SCRIPT = textwrap.dedent(
    """
    import time, torch, optwatch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = optwatch.attach(optimizer, model=model, name="small")
    x = torch.randn(256, 16)
    y = x[:, :1] * x[:, 1:2]
    for step in range(4000):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.005)
    watch.detach()
    """
)


async def test_a_real_training_is_seen_and_acted_on(daemon: DaemonProcess, tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        async with live() as pilot:
            await until(pilot, lambda: snapshot(pilot) and snapshot(pilot).status.step > 50, "steps")  # type: ignore[union-attr]
            await until(pilot, lambda: len(snapshot(pilot).samples.step), "per-tensor samples")  # type: ignore[union-attr]
            assert "0.weight" in text(pilot)
            await pilot.press("t", "enter", "h")
            await until(pilot, lambda: "█ positive" in text(pilot), "the tensor's histogram")
            await pilot.press("escape", "escape")
            await pilot.press("r", "y")
            await until(pilot, lambda: "restart applied at step" in text(pilot), "the restart")
            await pilot.press("c", "down", "down", "y")
            await until(pilot, lambda: snapshot(pilot).status.clip is not None, "the clip")  # type: ignore[union-attr]
            assert process.poll() is None
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
