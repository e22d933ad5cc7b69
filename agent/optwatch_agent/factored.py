"""Second moments that are kept as their means over rows and columns, as Adafactor's are.

What stands for the second moment is the product R C / mean(R) (Shazeer and Stern, Adafactor, 2018). One
tensor at a time is multiplied out, on sampled steps only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.shards import is_sharded


class Factors(NamedTuple):
    """The state's keys of the means of rows and of columns. `kept`: each has the dimension of which it is the
    mean, of size 1. `least`: mean(R) is at least the group's `eps[0]`, or the ε of the dtype where that is
    None."""

    rows: str
    columns: str
    kept: bool = False
    least: bool = False


def multiplied(factors: Factors, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """The second moment that the factors stand for, None where the state has none or only a part of them, or
    they are means over other dimensions than the last two (timm's of a convolution)."""
    rows, columns = state.get(factors.rows), state.get(factors.columns)
    if not isinstance(rows, Tensor) or not isinstance(columns, Tensor):
        return None
    if is_sharded(rows) or is_sharded(columns):
        return None
    if not factors.kept:
        if rows.shape[:-1] != columns.shape[:-1]:
            return None
        rows, columns = rows.unsqueeze(-1), columns.unsqueeze(-2)
    mean = rows.mean(dim=-2, keepdim=True)
    if factors.least:
        least = group["eps"][0]
        mean = mean.clamp(min=torch.finfo(rows.dtype).eps if least is None else least)
    return rows * (columns / mean)
