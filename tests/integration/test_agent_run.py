"""`optwatch run`: scripts that know nothing of optwatch."""

import subprocess
import sys
from pathlib import Path

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


def python(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=2 * GUARD, cwd=cwd
    )


@pytest.mark.parametrize("way", ["script", "module"])
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


def test_two_optimizers_are_one_run(daemon: DaemonProcess, tmp_path: Path) -> None:
    (tmp_path / "gan.py").write_text(GAN)
    done = python("-m", "optwatch", "run", "--", "gan.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with daemon.client() as client:
        (run,) = client.runs()
        status = client.status(run.run)
    assert run.name == "gan"
    assert sorted(optimizer.kind for optimizer in status.optimizers) == ["Adam", "SGD"]


def test_the_scripts_own_end_is_kept(home: Path, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(7)")
    assert python("-m", "optwatch", "run", "--", "leaves.py", cwd=tmp_path).returncode == 7
    (tmp_path / "breaks.py").write_text("raise RuntimeError('broken')")
    done = python("-m", "optwatch", "run", "--", "breaks.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: broken")


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
