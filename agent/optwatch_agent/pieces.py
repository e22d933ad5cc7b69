"""The tensors and numbers of one parameter that its statistics are made of."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from optwatch_agent.roles import Roles
from optwatch_agent.tensors import local, scalar


class Piece(NamedTuple):
    """Float tensors of as many elements of one parameter, flat of a block of it, or of several joined.

    `numbers` are those of the update rule, empty where there is no update to compute.
    """

    param: Tensor
    grad: Tensor
    first: Tensor | None
    second: Tensor | None
    extra: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    correction: float
    epsilon: float

    def cut(self, part: slice) -> "Piece":
        """A block of it, in float32 (float64 stays)."""
        return self._replace(
            param=wide(self.param[part]),
            grad=wide(self.grad[part]),
            first=None if self.first is None else wide(self.first[part]),
            second=None if self.second is None else wide(self.second[part]),
            extra={key: wide(tensor[part]) for key, tensor in self.extra.items()},
        )

    def flat(self) -> "Piece":
        """The same with flat tensors."""
        return self._replace(
            param=self.param.reshape(-1),
            grad=self.grad.reshape(-1),
            first=None if self.first is None else self.first.reshape(-1),
            second=None if self.second is None else self.second.reshape(-1),
            extra={key: tensor.reshape(-1) for key, tensor in self.extra.items()},
        )


class Reader:
    """Reads the state of one group's parameters; what they share is worked out once."""

    def __init__(self, group: Mapping[str, object], roles: Roles) -> None:
        self._group = group
        self._roles = roles
        self.epsilon = roles.epsilon(group)
        """As of `Roles.epsilon`."""
        self._known: dict[tuple[object, ...], tuple[Mapping[str, float], float]] = {}

    def read(
        self, param: Tensor, grad: Tensor, state: Mapping[str, object]
    ) -> tuple[Piece, tuple[object, ...]]:
        """A parameter's tensors, and what has to be equal for parameters to be packed together."""
        roles, numel = self._roles, param.numel()
        first, second = self.moments(state, numel)
        extra: dict[str, Tensor] = {}
        if (rule := roles.update) is not None:
            for name in rule.extra:
                value = state.get(name)
                if isinstance(value, Tensor) and (tensor := _of_size(value, numel)) is not None:
                    extra[name] = tensor
        count = state.get("step")
        step = None if count is None else scalar(count)
        key = (id(self._group), step, first is None, second is None, *extra)
        numbers, correction = self.numbers(key, state, step)
        needs = () if rule is None else rule.needs
        if (first is None and roles.first in needs) or (second is None and roles.second in needs):
            numbers = {}
        return Piece(param, grad, first, second, extra, numbers, correction, self.epsilon), key

    def moments(self, state: Mapping[str, object], numel: int) -> tuple[Tensor | None, Tensor | None]:
        """Both moments, None where there is none of as many elements."""
        first, second, _ = self._roles.moments(state, self._group)
        return _of_size(first, numel), _of_size(second, numel)

    def small(self, state: Mapping[str, object]) -> float:
        """The root of the second moment under which sqrt(v̂) lies below 10 ε."""
        return 10 * self.epsilon * math.sqrt(self._roles.correction(state, self._group))

    def numbers(
        self, kind: tuple[object, ...], state: Mapping[str, object], step: float | None
    ) -> tuple[Mapping[str, float], float]:
        """The numbers of the update rule and the correction of v̂, which parameters of a kind share."""
        if kind not in self._known:
            self._known[kind] = self._of_rule(state, step), self._roles.correction(state, self._group)
        return self._known[kind]

    def _of_rule(self, state: Mapping[str, object], step: float | None) -> Mapping[str, float]:
        rule = self._roles.update
        if rule is None or any(key not in state for key in rule.needs):
            return {}
        if step is not None and step <= 0:  # a fused step that was skipped from the first
            return {}
        return rule.scalars(state, self._group)


def _of_size(tensor: Tensor | None, numel: int) -> Tensor | None:
    if tensor is None:
        return None
    tensor = local(tensor)
    return tensor if tensor.numel() == numel else None


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
