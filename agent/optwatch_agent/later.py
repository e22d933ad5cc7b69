"""Numbers that a device is still working out, read when it has got that far: nobody waits for them."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Later:
    """Numbers of steps, on their way to the host in the order of the steps."""

    def __init__(self) -> None:
        self._ring: deque[tuple[int, Tensor, Any]] = deque()

    def put(self, step: int, numbers: Tensor) -> None:
        """Queue a copy of the numbers of a step, into pinned memory behind what the device has to do."""
        if not numbers.is_cuda:
            self._ring.append((step, numbers.clone(), None))
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        make_event: Any = torch.cuda.Event
        passed = make_event()
        passed.record(torch.cuda.current_stream(numbers.device))
        self._ring.append((step, host, passed))

    def take(self) -> Iterator[tuple[int, list[float]]]:
        """The numbers that have arrived, by step."""
        while self._ring and ((passed := self._ring[0][2]) is None or passed.query()):
            step, numbers, _ = self._ring.popleft()
            yield step, numbers.tolist()
