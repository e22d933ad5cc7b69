"""An agent in a real training and a real daemon: what is sent arrives, whatever becomes of the daemon."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import optwatch
from optwatch.client import Refusal
from optwatch.daemon.history import History
from optwatch.daemon.store import FILE
from optwatch.daemon.tables import connect
from optwatch.wire.places import state_dir
from optwatch_agent import Watch
from optwatch_agent.ring import Ring
from tests.daemons import GUARD, DaemonProcess
from tests.histograms import counted
from tests.simulated import SimulatedRun
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import measure_always

SCRIPT = """
import sys, torch, optwatch
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = optwatch.attach(optimizer, name="script")
for _ in range(int(sys.argv[1])):
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().mean().backward()
    optimizer.step()
print("done", watch.run)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def wait_until(condition: Callable[[], bool], what: str, each: Callable[[], None] | None = None) -> None:
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end, what
        if each is None:
            time.sleep(0.02)
        else:
            each()


class Training:
    """A loop that a test takes step by step."""

    def __init__(self, **options: object) -> None:
        self.model = classifier()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.data = batches()
        self.watch: Watch = optwatch.attach(self.optimizer, model=self.model, **{"budget": 1.0, **options})
        self.losses: list[float] = []

    def go(self, steps: int = 1) -> None:
        self.losses += train(self.model, self.optimizer, self.data, steps)

    def connect(self) -> None:
        wait_until(lambda: self.watch._agent.link.welcomed, "no daemon took the agent", self.go)


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_whatever_a_script_calls_things_it_is_watched(daemon: DaemonProcess) -> None:
    endless: list[object] = []
    endless += [endless, endless]
    model = torch.nn.Linear(2, 2)
    model.register_parameter("b\udcff", torch.nn.Parameter(torch.ones(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0] |= {7: 1.0, "odd\udcff": Unspeakable(), "huge": 10**400}
    values = {"path": "data/\udcff", "k\udcff": 1, "it": Unspeakable(), "endless": endless, "big": [10**5000]}
    watch = optwatch.attach(
        {"o\udcff": optimizer}, model=model, name="run\udcff", config=values | {"j": torch.tensor(1j)}
    )
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        watch.log(**{"l\udcff": 1.0})
        watch.mark("m\udcff")
    watch.detach()
    with daemon.client() as client:
        status = client.status("run\udcff")
        view, _, _ = client.view("run?", points=10)
    assert (status.name, status.steps_recorded) == ("run?", 3)
    assert status.config["path"] == "data/?"
    assert status.config["it"] == "<Unspeakable>"
    assert {"7", "odd?", "huge"} <= set(status.optimizers[0].groups[0].options)
    assert "l?" in view.series.columns


def test_of_more_tensors_than_a_message_holds_the_norms_arrive(daemon: DaemonProcess) -> None:
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(65_537)]
    optimizer = torch.optim.SGD(params, lr=0.0)
    watch = optwatch.attach(optimizer, name="experts")
    measure_always(watch)
    for _ in range(10):
        for param in params:
            param.grad = torch.ones(1)
        optimizer.step()
    watch.detach()
    with daemon.client() as client:
        view, series, _ = client.view("experts", points=10)
    assert view.status.steps_recorded == 10
    assert not view.tensors.tensors
    norms = series.values[:, view.series.columns.index("param_norm")]
    assert np.nanmax(norms) == pytest.approx(65_537**0.5)
    (note,) = view.markers
    assert note.text == "the 65,537 tensors of optimizer are too many to tell of each: there are norms of all"


def test_histograms_of_a_training_arrive_as_its_gradients_were(daemon: DaemonProcess) -> None:
    training = Training(name="spread")
    governor = training.watch._agent.tracks[0].governor
    governor.budget = 1e6
    grads = {}
    for step in range(1, 41):
        governor.histogram_every = 10
        training.go()
        grads[step] = {name: counted(p.grad.numpy()) for name, p in training.model.named_parameters()}
    training.watch.detach()
    with daemon.client() as client:
        spread, blocks = client.histograms("spread")
        one, of_one = client.histograms("spread", "0.weight", first=int(blocks.step[-1]), limit=5)
        with pytest.raises(Refusal, match="limit is from 0 to"):
            client.histograms("spread", limit=10_000)
    assert len(blocks.step) in (3, 4)
    assert [tensor.name for tensor in spread.tensors] == list(grads[1])
    for row, step in enumerate(blocks.step.tolist()):
        np.testing.assert_array_equal(blocks.counts[row], np.stack(list(grads[step].values())))
    assert [tensor.name for tensor in one.tensors] == ["0.weight"]
    assert of_one.step.tolist() == blocks.step.tolist()[-1:]
    np.testing.assert_array_equal(of_one.counts[0], blocks.counts[-1, :1])


def test_history_arrives_whole(daemon: DaemonProcess) -> None:
    training = Training(name="whole", config={"batch": 32, "note": "x", "layers": [1, 2]})
    training.go(300)
    training.watch.log(val_loss=1.5)
    training.watch.mark("half time")
    training.go(5)
    training.watch.detach()
    with daemon.client() as client:
        status = client.status("whole")
        view, series, tensors = client.view(training.watch.run, points=10_000)
    assert status.state == "ended"
    assert status.steps_recorded == 305
    assert status.gaps == ()
    assert status.config == {"batch": 32, "note": "x", "layers": "1, 2"}
    columns = view.series.columns
    assert series.step.tolist() == list(range(1, 306))
    assert series.values[:, columns.index("loss")].tolist() == training.losses
    assert series.values[299, columns.index("val_loss")] == 1.5
    assert [(mark.step, mark.text) for mark in view.markers if mark.kind == "mark"] == [(300, "half time")]
    assert [tensor.name for tensor in view.tensors.tensors][:2] == ["0.weight", "0.bias"]
    assert len(tensors.step) > 0


def test_what_is_logged_when_the_last_step_has_arrived_is_recorded_behind_it(daemon: DaemonProcess) -> None:
    training = Training(name="evaluated")
    training.go(5)
    with daemon.client() as client:

        def recorded() -> int:
            return client.status(training.watch.run).steps_recorded

        wait_until(lambda: training.watch._agent.link.welcomed and recorded() == 5, "steps are missing")
        training.watch.log(val_loss=0.25)
        training.watch.log(val_accuracy=torch.tensor(0.5))
        training.watch.detach()
        view, series, _ = client.view(training.watch.run)
    columns = view.series.columns
    assert series.step.tolist() == [1, 2, 3, 4, 5, 6]
    last = dict(zip(columns, series.values[5].tolist(), strict=True))
    assert (last["val_loss"], last["val_accuracy"]) == (0.25, 0.5)
    assert np.isnan(last["loss"])


def test_commands_are_applied_and_reported(daemon: DaemonProcess) -> None:
    training = Training(name="obedient")
    training.connect()
    with daemon.client() as client:
        run = training.watch.run
        for action, args in (
            ("scale_lr", {"factor": 0.5}),
            ("scale_lr", {"factor": 0.5}),
            ("clip", {"max_norm": 0.01}),
            ("restart", {}),
        ):
            command = client.act(run, action, args, "a test")

            def state(number: str = command.id) -> str:
                return next(c.state for c in client.commands(run) if c.id == number)

            wait_until(lambda state=state: state() == "applied", "it was not applied", training.go)
        commands = client.commands(run)
        assert [c.ranks_applied for c in commands] == [(0,)] * 4
        wait_until(lambda: client.status(run).clip == 0.01, "no clip is shown", training.go)
        status = client.status(run)
        assert status.lr_scale == 0.25
        assert status.lr == 1e-2, "as scheduled"
    assert training.optimizer.param_groups[0]["lr"] == 1e-2
    training.watch.detach()


def test_a_script_ends_at_a_stop_where_it_allows_one(daemon: DaemonProcess) -> None:
    training = Training(name="stopped", allow="all")
    training.connect()
    with daemon.client() as client:
        assert not training.watch.should_stop
        number = client.act("stopped", "stop", {}, "flat for an hour").id
        wait_until(lambda: training.watch.should_stop, "no stop", training.go)
        ended_at = len(training.losses)
        training.watch.detach()
        assert training.watch.should_stop
        (stop,) = [command for command in client.commands("stopped") if command.id == number]
        assert (stop.state, stop.step) == ("applied", ended_at)
        with pytest.raises(Refusal, match="a stop cannot be undone"):
            client.undo("stopped", number)


def test_a_stop_is_refused_where_attach_does_not_allow_it(daemon: DaemonProcess) -> None:
    training = Training(name="busy")
    training.connect()
    with daemon.client() as client, pytest.raises(Refusal, match="stop is not allowed in this run"):
        client.act("busy", "stop", {}, "")
    training.watch.detach()


def test_a_daemon_that_starts_late_gets_it_all(home: Path) -> None:
    training = Training(name="early")
    training.go(50)
    daemon = DaemonProcess(home / "daemon").start()
    try:
        training.connect()
        training.watch.detach()
        with daemon.client() as client:
            assert client.status("early").steps_recorded == len(training.losses)
    finally:
        daemon.kill()


def test_a_killed_daemon_and_its_successor(daemon: DaemonProcess) -> None:
    training = Training(name="survivor")
    training.connect()
    training.go(20)
    daemon.kill()
    training.go(200)
    daemon.start()
    wait_until(lambda: not training.watch._agent.link.welcomed, "the loss was not seen", training.go)
    training.connect()
    training.go(10)
    training.watch.detach()
    with daemon.client() as client:
        status = client.status("survivor")
    assert status.steps_recorded == len(training.losses)
    assert status.gaps == ()


def test_a_daemon_that_is_told_to_end_says_goodbye(
    daemon: DaemonProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "optwatch")
    training = Training(name="parted")
    training.connect()
    training.go(20)
    assert daemon.stop() == 0
    # Not by a silence: it needs no step, and no time to pass.
    wait_until(lambda: "the daemon has stopped" in caplog.text, "the goodbye was not heard")
    assert not training.watch._agent.link.welcomed
    training.go(50)
    daemon.start()
    training.connect()
    training.watch.detach()
    with daemon.client() as client:
        status = client.status("parted")
    assert status.steps_recorded == len(training.losses)
    assert status.gaps == ()


def test_what_waits_too_long_loses_tensors_before_scalars(home: Path) -> None:
    run = SimulatedRun("patient", "tcp://127.0.0.1:9", 0, False, numbers=(0,), world_size=1)
    (rank,) = run.ranks
    rank.link.outbox.ring = Ring(most=300_000)  # a few messages
    rank.link.start()
    while rank.link.outbox.ring.thinned < 5:
        run.advance()
        time.sleep(0.001)
    daemon = DaemonProcess(home / "daemon").start()
    try:
        rank.link._address = daemon.address
        wait_until(lambda: rank.link.welcomed and not rank.link.outbox.queued, "not all was taken")
        with daemon.client() as client:
            wait_until(lambda: client.status("patient").ranks[0].thinned > 0, "nothing was told")
            status = client.status("patient")
        rank.link.stop("done")
    finally:
        daemon.stop()
    thinned = rank.link.outbox.ring.thinned
    assert status.gaps == ()
    assert status.ranks[0].dropped == 0
    assert status.ranks[0].thinned == thinned
    stored = History(connect(str(state_dir() / FILE), read_only=True)).parts(run.run, 0, 0, limit=4_096)
    assert [there[0].step for there in stored] == list(rank.samples)[thinned:]


def test_a_successor_at_another_port_is_found(home: Path) -> None:
    first = DaemonProcess(home / "daemon").start()
    training = Training(name="mover")
    training.connect()
    first.kill()
    second = DaemonProcess(home / "daemon").start()
    try:
        assert second.address != first.address
        wait_until(lambda: not training.watch._agent.link.welcomed, "the loss was not seen", training.go)
        training.connect()
        training.watch.detach()
        with second.client() as client:
            assert client.status("mover").steps_recorded == len(training.losses)
    finally:
        second.kill()


def test_a_stopped_daemon_holds_nothing_up(daemon: DaemonProcess) -> None:
    training = Training(name="patient")
    training.connect()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        training.go(500)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    training.watch.detach()
    with daemon.client() as client:
        assert client.status("patient").steps_recorded == len(training.losses)


@pytest.mark.parametrize("steps", [1, 200])
def test_a_script_that_just_ends(daemon: DaemonProcess, steps: int) -> None:
    """No detach: the exit of the process sends what is left and says goodbye."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(steps)], capture_output=True, text=True, timeout=GUARD * 2
    )
    assert (done.returncode, done.stderr) == (0, "")
    with daemon.client() as client:
        status = client.status(done.stdout.split()[1])
    assert status.steps_recorded == steps
    assert status.state == "ended"


def test_no_daemon_at_all(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "200"], capture_output=True, text=True, timeout=GUARD * 2
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_whose_key_is_not_known_is_told_nothing(
    daemon: DaemonProcess, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "elsewhere").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "elsewhere"))
    training = Training(name="wary", daemon=daemon.address)
    wait_until(lambda: "no key is known" in caplog.text, "nothing was said", training.go)
    training.watch.detach()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "runtime"))
    with daemon.client() as client:
        assert client.runs() == ()


FORK = """
import os, torch, optwatch
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = optwatch.attach(optimizer, name="parent")
def step():
    optimizer.zero_grad(); model(torch.ones(3, 4)).square().mean().backward(); optimizer.step()
class Data(torch.utils.data.Dataset):
    def __len__(self): return 20
    def __getitem__(self, i): return torch.ones(4)
def main(how):
    for batch in torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context=how):
        step()
main("fork")
child = os.fork()
if child == 0:
    for _ in range(50): step()
    watch.log(loss=1.0); watch.detach()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
step()
print("done", watch.run)
"""


def test_forked_children_are_still(daemon: DaemonProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=GUARD * 2
    )
    assert (done.returncode, done.stderr) == (0, "")
    with daemon.client() as client:
        assert client.status("parent").steps_recorded == 21
        assert len(client.runs()) == 1
