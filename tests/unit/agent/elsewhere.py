"""Tensors of the CPU that are taken for a device's, and what arrives from them late."""

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optwatch_agent import later, tensors


class Event:
    """An event that has passed once it was asked so often, or waited for."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.waited = False

    def query(self) -> bool:
        self.delay -= 1
        return self.delay < 0

    def synchronize(self) -> None:
        self.waited = True


class Device:
    """The device that the CPU stands for. What it worked out arrives when it was asked for `delay` times."""

    def __init__(self, delay: int = 0) -> None:
        self.delay = delay
        self.copies = 0
        self.events: deque[Event] = deque()

    def carried(self, numbers: Tensor) -> tuple[Tensor, Any]:
        self.copies += 1
        self.events.append(Event(self.delay))
        return numbers.clone(), self.events[-1]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(tensors, "DEVICES", {"cpu"})
    monkeypatch.setattr(later, "carried", made.carried)
    return made


_WAITS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
    "_unique2",
)


class NoWait(TorchDispatchMode):
    """Notes whatever would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype is torch.bool for each in args[1] if each is not None
        )
        if name in _WAITS or by_mask:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))
