"""`optwatch run`: scripts that know nothing of optwatch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.daemons import GUARD, DaemonProcess

PLAIN = """
import sys, torch
torch.set_num_threads(1)
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)
    def forward(self, x):
        return self.last(self.first(x).relu())
if __name__ == "__main__":
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=float(sys.argv[2]))
    for _ in range(int(sys.argv[1])):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    print(sum(p.double().sum().item() for p in net.parameters()))
"""

GAN = """
import torch
torch.set_num_threads(1)
g, d = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
og, od = torch.optim.Adam(g.parameters()), torch.optim.SGD(d.parameters(), lr=0.1)
for _ in range(5):
    od.zero_grad(); d(g(torch.randn(4, 2)).detach()).mean().backward(); od.step()
    og.zero_grad(); d(g(torch.randn(4, 2))).mean().backward(); og.step()
"""


CONTAINED = """
import torch
torch.set_num_threads(1)
nets = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)]
class Both(torch.optim.Optimizer):
    def __init__(self):
        adam, sgd = torch.optim.Adam(nets[0].parameters()), torch.optim.SGD(nets[1].parameters(), lr=0.1)
        self.optimizers = [adam, sgd]
        super().__init__([p for net in nets for p in net.parameters()], {})
    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()
both = Both()
for _ in range(5):
    nets[1](nets[0](torch.randn(4, 2))).mean().backward()
    both.step()
"""

WITHIN_BACKWARD = """
import torch
net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(33)))
optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}
def take_step(p):
    optimizers[p].step()
    optimizers[p].zero_grad()
for p in net.parameters():
    p.register_post_accumulate_grad_hook(take_step)
for _ in range(3):
    net(torch.ones(1, 2)).sum().backward()
print("trained")
"""

AS_THE_STEP_GOES_ON = """
import torch
net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(COUNT)))
optimizers = {}
for _ in range(4):
    net(torch.ones(1, 2)).sum().backward()
    for p in net.parameters():
        if p not in optimizers:
            optimizers[p] = torch.optim.SGD([p], lr=0.1)
        optimizers[p].step()
        p.grad = None
"""

ONE_TENSOR = """
import sys, torch
p = torch.nn.Parameter(torch.ones(3))
q = torch.ones(3, requires_grad="another" in sys.argv)
closure = "closure" in sys.argv
optimizer = torch.optim.LBFGS([p], max_iter=3) if closure else torch.optim.SGD([p], lr=0.1)
def loss():
    optimizer.zero_grad()
    loss = (q * p).square().sum()
    loss.backward()
    return loss
for _ in range(int(sys.argv[1])):
    optimizer.step(loss) if closure else (loss(), optimizer.step())
"""


def python(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=2 * GUARD, cwd=cwd
    )


@pytest.mark.parametrize("way", ["script", pytest.param("module", marks=pytest.mark.slow)])
def test_zero_lines(daemon: DaemonProcess, tmp_path: Path, way: str) -> None:
    (tmp_path / "train.py").write_text(PLAIN)
    target = ["--", "train.py"] if way == "script" else ["-m", "train"]
    plain = python("train.py", "30", "0.1", cwd=tmp_path)
    done = python("-m", "optwatch", "run", "--name", "zero", *target, "30", "0.1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == plain.stdout, "the same numbers, bit by bit"
    with daemon.client() as client:
        status = client.status("zero")
        view, series, _ = client.view("zero", points=1000)
    assert status.steps_recorded == 30
    assert status.state == "ended"
    losses = series.values[:, view.series.columns.index("loss")]
    assert (losses > 0).all(), "also the first step has its loss"


@pytest.mark.parametrize("script", [GAN, CONTAINED], ids=["gan", "contained"])
def test_two_optimizers_are_one_run(daemon: DaemonProcess, tmp_path: Path, script: str) -> None:
    (tmp_path / "gan.py").write_text(script)
    done = python("-m", "optwatch", "run", "--", "gan.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with daemon.client() as client:
        (run,) = client.runs()
        status = client.status(run.run)
    assert run.name == "gan"
    assert sorted(optimizer.kind for optimizer in status.optimizers) == ["Adam", "SGD"]


def test_optimizers_that_step_within_backward_are_one(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "within.py").write_text(WITHIN_BACKWARD)
    done = python("-m", "optwatch", "run", "--", "within.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    with daemon.client() as client:
        view, series, _ = client.view("within", points=1000)
        (optimizer,) = client.status("within").optimizers
    assert (optimizer.kind, len(optimizer.groups)) == ("SGD", 66)
    losses = series.values[:, view.series.columns.index("loss")]
    assert losses.shape == (3,)
    assert np.isfinite(losses).all(), "also the first step has its loss"


@pytest.mark.parametrize(("count", "shown"), [(2, [1] * 4), (40, [80])])
def test_optimizers_that_are_made_as_the_step_goes_on_are_one_run(
    daemon: DaemonProcess, tmp_path: Path, count: int, shown: list[int]
) -> None:
    """As those of Pyro."""
    (tmp_path / "lazy.py").write_text(AS_THE_STEP_GOES_ON.replace("COUNT", str(count)))
    done = python("-m", "optwatch", "run", "--", "lazy.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with daemon.client() as client:
        (run,) = client.runs()
        status = client.status(run.run)
    assert [len(optimizer.groups) for optimizer in status.optimizers] == shown
    assert status.steps_recorded == 3, "the first is over when it is seen that they are many"


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [(["3"], [1, 2, 3]), (["3", "another"], [2, 3]), (["1", "another", "closure"], [1])],
)
def test_an_optimizer_of_one_tensor(
    daemon: DaemonProcess, tmp_path: Path, arguments: list[str], recorded: list[int]
) -> None:
    """It may be the first of many where another tensor has a gradient; a single call of L-BFGS may be a whole
    training."""
    (tmp_path / "one.py").write_text(ONE_TENSOR)
    done = python("-m", "optwatch", "run", "--", "one.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with daemon.client() as client:
        view, series, _ = client.view("one", points=1000)
    assert series.step.tolist() == recorded
    losses = series.values[:, view.series.columns.index("loss")].tolist()
    assert losses == sorted(losses, reverse=True), "each is of its own step"
    assert "backward_passes" not in view.series.columns


def test_the_scripts_own_end_is_kept(home: Path, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(7)")
    assert python("-m", "optwatch", "run", "--", "leaves.py", cwd=tmp_path).returncode == 7
    (tmp_path / "breaks.py").write_text("raise RuntimeError('broken')")
    done = python("-m", "optwatch", "run", "--", "breaks.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "\nRuntimeError: broken\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which script"),
        (["--", "none.py"], "no script none.py"),
        (["-m", "no.such"], "no module no.such"),
    ],
)
def test_wrong_use_speaks(home: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    done = python("-m", "optwatch", "run", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


SWEEP = """
import gc, os, weakref
import importlib.util
assert importlib.util.find_spec("torch")  # as libraries ask whether it is there
os.environ["OMP_NUM_THREADS"] = "1"
import torch
assert torch.get_num_threads() == 1, "the script's environment came too late"
gone = []
def train(seed):
    torch.manual_seed(seed)
    net = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01 * (seed + 1))
    gone.append(weakref.ref(optimizer))
    for _ in range(3 + seed):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return net.weight.sum().item()
print([train(seed) for seed in range(20)])
gc.collect()
print([ref() is None for ref in gone])
"""

LATE = """
import torch, optwatch, warnings
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
torch.manual_seed(0)
def step(net, optimizer, x):
    optimizer.zero_grad(); net(x).square().mean().backward(); optimizer.step()
def rows(method):
    data = TensorDataset(torch.randn(12, 4))
    return [x for x, in DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=method)]
if __name__ == "__main__":
    first, second, own = (torch.nn.Linear(4, 1) for _ in range(3))
    one = torch.optim.SGD(first.parameters(), lr=0.1)
    for x in rows("fork") + rows("spawn"):
        step(first, one, x)
    two = torch.optim.Adam(second.parameters())
    mine = torch.optim.RMSprop(own.parameters())
    watch = optwatch.attach(mine, name="mine")
    for _ in range(4):
        step(second, two, x); step(own, mine, x); step(first, one, x)
    print([p.sum().item() for net in (first, second, own) for p in net.parameters()])
"""


def test_a_sweep_is_a_run_for_each_training_and_keeps_none_alive(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    (tmp_path / "sweep.py").write_text(SWEEP)
    plain = python("sweep.py", cwd=tmp_path)
    done = python("-m", "optwatch", "run", "--", "sweep.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == plain.stdout
    assert "False" not in done.stdout.splitlines()[-1]
    with daemon.client() as client:
        runs = {run.name: run for run in client.runs()}
        recorded = {name: client.status(run.run).steps_recorded for name, run in runs.items()}
    names = ["sweep"] + [f"sweep {n}" for n in range(2, 21)]
    assert recorded == {name: 3 + seed for seed, name in enumerate(names)}
    assert {run.state for run in runs.values()} == {"ended"}


def test_a_late_optimizer_a_watched_one_and_loader_workers(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    plain = python("late.py", cwd=tmp_path)
    done = python("-m", "optwatch", "run", "--name", "n", "--", "late.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with daemon.client() as client:
        kinds = {
            run.name: [optimizer.kind for optimizer in client.status(run.run).optimizers]
            for run in client.runs()
        }
        steps = {run.name: run.step for run in client.runs()}
    assert kinds == {"n": ["SGD"], "n 2": ["Adam"], "mine": ["RMSprop"]}, "and none is watched twice"
    assert steps == {"n": 10, "n 2": 4, "mine": 4}
    assert done.stdout == plain.stdout, "the same numbers, bit by bit"


def test_a_script_without_a_step_says_so_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text("import torch\ntorch.optim.SGD(torch.nn.Linear(1, 1).parameters())")
    done = python("-m", "optwatch", "run", "--", "looks.py", cwd=tmp_path)
    assert done.returncode == 0
    says = "optwatch run: no torch.optim.Optimizer took a step in this process, so nothing was watched\n"
    assert done.stderr == says


def test_of_one_step_of_one_tensor_nothing_is_watched_and_it_is_said(home: Path, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(ONE_TENSOR)
    done = python("-m", "optwatch", "run", "--", "one.py", "1", "another", cwd=tmp_path)
    assert done.returncode == 0
    assert "have one tensor, and took no second, so nothing was watched" in done.stderr


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(["--no-python", "optwatch"], id="console"),
        pytest.param(["-m", "optwatch"], id="module", marks=pytest.mark.slow),
    ],
)
def test_zero_lines_under_torchrun(daemon: DaemonProcess, tmp_path: Path, way: list[str]) -> None:
    script = PLAIN.replace(
        "    net = Net()", "    torch.distributed.init_process_group('gloo')\n    net = Net()"
    )
    script += "    torch.distributed.destroy_process_group()\n"
    (tmp_path / "train.py").write_text(script)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *way,
         "run", "--name", "ranks", "--", "train.py", "12", "0.1"],
        capture_output=True, text=True, timeout=4 * GUARD, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with daemon.client() as client:
        (run,) = client.runs()
        status = client.status(run.run)
    assert (status.world_size, status.steps_recorded) == (2, 12)
