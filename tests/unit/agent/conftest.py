"""An isolated home for every test of the agent."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _alone(home: Path) -> None:
    torch.set_num_threads(1)
