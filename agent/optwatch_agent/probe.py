"""Statistics of every tensor of one optimizer, measured after a step from gradients, state and parameters.

What the compiled pass can read goes through it in one call; the rest, and all where it is not there,
takes the base path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from optwatch_agent import blocks, compiled
from optwatch_agent.norms import sum_of_squares
from optwatch_agent.pieces import Reader
from optwatch_agent.roles import Roles
from optwatch_agent.shards import is_partial
from optwatch_agent.sums import Sample, Sums
from optwatch_agent.tensors import local, on_cpu

__all__ = ["Sample", "measure"]


def measure(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    roles: Roles,
    updates: Mapping[int, Tensor] | None = None,
    grads: Mapping[int, Tensor] | None = None,
) -> Sample:
    """Measure T parameters after a step. `updates`: those that were seen as a difference, by index.

    Reads the gradients as they are now: after a step, those that the optimizer used. Where the step
    overwrites them, `grads` holds those that were kept, by index; of other parameters nothing but their
    own values is measured then.
    """
    sums = Sums(len(params))
    numel = np.zeros(len(params))
    packs: dict[tuple[object, ...], blocks.Pack] = {}
    table = compiled.table(roles)
    index = 0
    with torch.no_grad(), np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore"):
        for group in optimizer.param_groups:
            reader = Reader(group, roles)
            for param in group["params"]:
                i, index = index, index + 1
                whole = local(param)
                size = whole.numel()
                numel[i] = size
                if not on_cpu(whole) or size == 0:
                    continue
                given = param.grad if grads is None else grads.get(i)
                if given is None or is_partial(given):  # summands say nothing about the sum
                    blocks.add_param(sums, i, whole)
                    continue
                grad = local(given if given.layout is torch.strided else given.to_dense())
                if grad.numel() != size:  # the parameter's data are others by now
                    blocks.add_param(sums, i, whole)
                    blocks.add_grad(sums, i, grad)
                    continue
                piece, kind = reader.read(whole, grad, optimizer.state.get(param, {}))
                if table is not None and table.takes(i, piece):
                    continue
                if blocks.is_large(size):
                    blocks.add_large(sums, i, piece, roles)
                else:
                    packs.setdefault(kind, []).append((i, piece))
        if table is not None:
            table.measure(sums)
        for pack in packs.values():
            blocks.add_packed(sums, pack, roles)
        for i, update in (updates or {}).items():
            sums.add("update", i, sum_of_squares(update))
    sample = sums.sample(numel)
    # Of a gradient that was not kept it is not known whether there was one, and so an update.
    kept = grads is None or len(grads) == len(params)
    return sample if kept else replace(sample, update_norm=None)
