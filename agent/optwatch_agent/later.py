"""Numbers that a device is still working out, read when it has got that far: nobody waits for them.

They stay on the device while a copy is under way, and go together with the next one: into pinned memory,
behind what the device has to do, with an event that tells when they are there. All of it is the training
thread's: a call to CUDA from any other would end a graph that is being captured.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


class Later(Generic[Key]):
    """Numbers on their way to the host, each with what they are for; in order, as far as one device does
    them in order."""

    def __init__(self) -> None:
        self._lanes: dict[Any, _Lane[Key]] = {}

    def put(self, key: Key, numbers: Tensor) -> None:
        """Have numbers copied that the device's current stream works out; nobody may write to them again."""
        stream = torch.cuda.current_stream(numbers.device) if numbers.is_cuda else None
        lane = self._lanes.setdefault(stream or numbers.device, _Lane(stream))
        lane.waiting.append((key, numbers))

    def take(self) -> Iterator[tuple[Key, list[float]]]:
        """What has arrived, float64 whatever it was."""
        for lane in tuple(self._lanes.values()):
            yield from lane.take()

    def finish(self) -> Iterator[tuple[Key, list[float]]]:
        """All that is on its way, for which this waits."""
        for lane in tuple(self._lanes.values()):
            yield from lane.finish()


class _Lane(Generic[Key]):
    """What one stream works out."""

    def __init__(self, stream: Any) -> None:
        self.waiting: list[tuple[Key, Tensor]] = []
        self._stream = stream
        self._flight: tuple[list[tuple[Key, int]], Tensor, Any] | None = None
        """What is under way: the keys and how many numbers each has, where they go, and the event."""

    def take(self) -> Iterator[tuple[Key, list[float]]]:
        while self._flight is not None or self.waiting:
            if self._flight is None:
                self._flight = self._send()
            if not self._flight[2].query():
                return
            yield from self._landed()

    def finish(self) -> Iterator[tuple[Key, list[float]]]:
        while self._flight is not None or self.waiting:
            if self._flight is None:
                self._flight = self._send()
            self._flight[2].synchronize()
            yield from self._landed()

    def _landed(self) -> Iterator[tuple[Key, list[float]]]:
        assert self._flight is not None
        (keys, host, _), self._flight = self._flight, None
        numbers = deque(host.tolist())
        for key, size in keys:
            yield key, [numbers.popleft() for _ in range(size)]

    def _send(self) -> tuple[list[tuple[Key, int]], Tensor, Any]:
        waiting, self.waiting = self.waiting, []
        on_stream: Any = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with torch.no_grad(), on_stream:
            flat = [numbers.detach().reshape(-1).to(torch.float64) for _, numbers in waiting]
            return [(key, numbers.numel()) for key, numbers in waiting], *carried(torch.cat(flat))


class Arrived:
    """The event of numbers that are on the host already."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


def carried(numbers: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event after which it can be read."""
    if not numbers.is_cuda:
        return numbers, Arrived()
    host = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    make_event: Any = torch.cuda.Event
    passed = make_event()
    passed.record()
    return host, passed
