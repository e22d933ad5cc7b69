"""The Triton kernel that measures the tensors of a device in one read, where it is asked for and can be had.

Asked for, with $OPTWATCH_TRITON=1: it reads by addresses, and what a kernel does wrong no `try` can catch, so
that one which no GPU has proven yet is not to decide over anybody's training. It is compiled when it is made,
which `attach` does: a second or two where no earlier process did it on this host. Where it is not asked for,
Triton is not there, or anything fails, `device_sums` measures with torch's own operations.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optwatch_agent.rows import uploaded

log = logging.getLogger("optwatch")

_KINDS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""As in `triton_kernels`, which only Triton can load."""
_MOST_MAPS = 8
_IN_SECOND_STAGE = 64

Tensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]
"""Gradient, first and second moment and parameter, flat and of as many elements."""


class Kernel:
    """The kernel on one device.

    Raises:
        Exception: it cannot be loaded, compiled or launched.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._triton: Any = importlib.import_module("optwatch_agent.triton_kernels")
        self.columns: tuple[str, ...] = self._triton.COLUMNS
        self._maps: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
        self._table: tuple[list[list[tuple[int, int]]], Tensor, Tensor] | None = None
        x = torch.ones(1, device=device)
        self.measure(
            [(x, x, x, x)], torch.ones(self._triton.NUMBERS, 1, dtype=torch.float64, device=device), False
        )

    def takes(self, tensors: Tensors) -> bool:
        """Whether it can read tensors: of dtypes that it knows."""
        return all(x is None or (x.dtype in _KINDS and not x.is_neg()) for x in tensors)

    def measure(self, tensors: Sequence[Tensors], numbers: Tensor, itself: bool) -> Tensor:
        """The sums and peaks of T parameters, float64[COLUMNS, T]; nothing waits for them.

        `numbers` float64[NUMBERS, T] and `itself` as in `triton_kernels.chunks_of`.
        """
        k = self._triton
        n = len(tensors)
        on_device: Any = (
            torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()
        )
        with on_device:
            sizes, owners, starts, ends = self._map(tuple(param.numel() for _, _, _, param in tensors))
            addresses, kinds = self._addresses(tensors)
            chunks = len(owners)
            of_chunks = torch.empty(len(k.COLUMNS), chunks, dtype=torch.float64, device=self.device)
            out = torch.empty(len(k.COLUMNS), n, dtype=torch.float64, device=self.device)
            k.chunks_of[(chunks,)](
                addresses, kinds, sizes, numbers.contiguous(), owners, starts, of_chunks, n, chunks,
                int(itself), CHUNK=k.CHUNK, BLOCK=k.BLOCK, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
            k.tensors_of[(n,)](
                of_chunks, ends, out, n, chunks,
                SUMS=k.SUMS, COLUMNS=len(k.COLUMNS), BLOCK=_IN_SECOND_STAGE,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        return out

    def _map(self, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Which chunk is whose, from which element on, worked out once for tensors of these sizes."""
        if sizes not in self._maps:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            of_each = np.array([-(-size // self._triton.CHUNK) for size in sizes])
            ends = np.concatenate(([0], np.cumsum(of_each)))
            owners = np.repeat(np.arange(len(sizes)), of_each)
            starts = (np.arange(ends[-1]) - ends[owners]) * self._triton.CHUNK
            arrays = (np.array(sizes), owners.astype(np.int32), starts, ends.astype(np.int32))
            self._maps[sizes] = tuple(uploaded(array, self.device) for array in arrays)
        return self._maps[sizes]

    def _addresses(self, tensors: Sequence[Tensors]) -> tuple[Tensor, Tensor]:
        """Where the tensors are and how they are stored, copied to the device where that has changed."""
        found = [[(0, 0) if x is None else (x.data_ptr(), _KINDS[x.dtype]) for x in each] for each in tensors]
        if self._table is None or self._table[0] != found:
            both = np.array(found, dtype=np.int64)
            kinds = np.ascontiguousarray(both[:, :, 1], dtype=np.int32)
            self._table = (
                found,
                uploaded(np.ascontiguousarray(both[:, :, 0]), self.device),
                uploaded(kinds, self.device),
            )
        return self._table[1], self._table[2]


def kernel_for(device: torch.device) -> Kernel | None:
    """The kernel on a device, None where it is not asked for or cannot be had."""
    if os.environ.get("OPTWATCH_TRITON") != "1":
        return None
    try:
        return Kernel(device)
    except Exception as error:  # noqa: BLE001 - whatever is wrong, torch's own operations are there
        log.info("optwatch: tensors on %s are measured without Triton: %r", device, error)
        return None
