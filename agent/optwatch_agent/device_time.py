"""What measuring takes of a device's time: told by events, when they have passed."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch


class DeviceTime:
    """Times one kind of work, which is launched now and then on the current streams of CUDA devices."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.seconds = 0.0
        """What the last one took that has been timed, of the device that took longest; 0 without a device."""
        self._devices = devices
        self._begun: list[Any] = []
        self._under_way: deque[tuple[list[Any], list[Any]]] = deque()

    def start(self) -> None:
        """What is launched from now on counts."""
        if self._devices:
            self._begun = [_recorded(device) for device in self._devices]

    def stop(self) -> float:
        """It counts no more; `seconds`."""
        if not self._devices:
            return 0.0
        self._under_way.append((self._begun, [_recorded(device) for device in self._devices]))
        while self._under_way and all(event.query() for event in self._under_way[0][1]):
            begun, ended = self._under_way.popleft()
            self.seconds = max(a.elapsed_time(b) for a, b in zip(begun, ended, strict=True)) / 1e3
        return self.seconds


def _recorded(device: torch.device) -> Any:
    """An event of what the device has been given so far."""
    make: Any = torch.cuda.Event
    event = make(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
