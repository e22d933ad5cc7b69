"""Where the own time of a rank ends whose parameters are spread over the ranks: where its model is called.

Data-parallel ranks wait for each other within the backward pass alone. Where parameters are sharded
(FSDP2, HSDP, tensor parallelism) they do in the forward pass as well: parameters are gathered there, or
partial results added up. What a rank does from the end of a backward pass until its model is called is
its own in any case: the optimizer's step, and the data.
"""

from typing import Any

import torch
from torch import nn

from optwatch_agent.forward import Uncopied
from optwatch_agent.phases import PHASES
from optwatch_agent.shards import is_sharded


class Pace(Uncopied):
    """The hook on such a model. It goes before those of the model's own, in which the ranks wait already."""

    def __init__(self, model: nn.Module) -> None:
        self._handle = model.register_forward_pre_hook(self, prepend=True)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            PHASES.here().begin_forward()

    def close(self) -> None:
        self._handle.remove()


def waits_in_forward(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over ranks."""
    return any(map(is_sharded, model.parameters()))
