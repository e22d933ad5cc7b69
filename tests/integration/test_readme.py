"""What the README says is there, is there."""

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from optwatch.cli import SUBCOMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROWS = [re.split(r"(?<!\\)\|", line)[1:3] for line in README.splitlines() if line.startswith("| `optwatch ")]
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def named(cell: str) -> list[str]:
    """The subcommands of a cell: `optwatch runs`, `status` are two."""
    return [span.removeprefix("optwatch ").split()[0] for span in re.findall(r"`([^`]+)`", cell)]


def test_the_table_names_every_command_and_no_other() -> None:
    assert {name for command, _ in ROWS for name in named(command)} == set(SUBCOMMANDS)


@pytest.mark.parametrize(("command", "text"), ROWS)
def test_the_options_of_the_table_are_there(command: str, text: str) -> None:
    for name in named(command):
        parser = argparse.ArgumentParser()
        import_module(SUBCOMMANDS[name]).configure(parser)
        for option in re.findall(r"`(--[a-z-]+)", text):
            assert option in parser.format_help(), name


def test_the_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "help"} <= used <= targets


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_blocks_run(code: str) -> None:
    model = torch.nn.Linear(2, 1)
    names = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "val_loss": 0.5,
    }
    exec(f"import optwatch\n{code}", names)
    names["watch"].detach()  # type: ignore[attr-defined]


def test_there_are_blocks_and_rows() -> None:
    assert len(BLOCKS) == 2
    assert len(ROWS) > 8
