"""GradScaler: its scale, and the steps that it skipped because a gradient overflowed.

A step that a for-loop or foreach optimizer skips runs no hook at all, so they are counted where every
loop ends its step: at `GradScaler.update`, from what the scaler found. Nothing is read back from a
device.
"""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from optwatch_agent import losses
from optwatch_agent.joint import members_of
from optwatch_agent.outside import inlined, outside
from optwatch_agent.patches import Patch
from optwatch_agent.recorder import Value
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu


class Follower(Protocol):
    """Who wants to know of one optimizer's skipped steps."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def gone(self) -> bool: ...

    @property
    def completed(self) -> int: ...

    def settle(self) -> None:
        """Every step that was to be taken has been."""
        ...

    def scaled(self, scale: Value, ran: bool, skipped: bool) -> None:
        """An update of the scaler: the scale that the step had, whether `step` ran, and whether in vain."""
        ...


class ScalerTap:
    """Sees every scaler of the process at its update, and tells the followers of its optimizers."""

    def __init__(self) -> None:
        self.patch = Patch(torch.amp.grad_scaler.GradScaler, "update", self._wrap)
        self._followers: dict[Follower, int] = {}
        """With the steps that each had completed at the last update."""
        self._scalers: weakref.WeakKeyDictionary[Follower, weakref.ref[Any]] = weakref.WeakKeyDictionary()
        self._inside: set[int] = set()
        """The ids of scalers whose `update` is under way."""
        self._own: dict[tuple[type, str], Patch] = {}

    def install(self, follower: Follower) -> None:
        self._followers[follower] = follower.completed
        self.patch.install()

    def recount(self, follower: Follower) -> None:
        """The follower's steps go on from another count."""
        if follower in self._followers:
            self._followers[follower] = follower.completed

    def remove(self, follower: Follower) -> None:
        self._followers.pop(follower, None)
        self._scalers.pop(follower, None)
        self.patch.remove()

    def scaler_of(self, optimizer: torch.optim.Optimizer) -> Any:
        """The scaler that was seen to scale an optimizer's gradients, None before it was."""
        for follower, reference in self._scalers.items():
            if not follower.gone and follower.optimizer is optimizer:
                return reference()
        return None

    def _wrap(self, update: Callable[..., Any]) -> Callable[..., Any]:
        saw = outside(self._saw)

        def watched(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            # It may be within that of a subclass.
            if id(scaler) in self._inside or torch.compiler.is_compiling():
                return update(scaler, *args, **kwargs)
            if self.patch.users:
                saw(scaler)
            self._inside.add(id(scaler))
            try:
                return update(scaler, *args, **kwargs)
            finally:
                self._inside.discard(id(scaler))

        return inlined(watched)

    def patches_of(self, kind: type) -> list[Patch]:
        """What has to be patched of a subclass of GradScaler whose methods hide those of its base."""
        base = torch.amp.grad_scaler.GradScaler
        makers = {"update": self._wrap, "scale": losses.TAP.wrap_scale}
        return [
            self._own.setdefault((owner, name), Patch(owner, name, make))
            for owner in kind.__mro__
            if owner is not base and issubclass(owner, base)
            for name, make in makers.items()
            if name in vars(owner)
        ]

    def _saw(self, scaler: Any) -> None:
        try:
            for follower, before in tuple(self._followers.items()):
                if not (found := _found(scaler, follower)):
                    continue
                self._scalers[follower] = weakref.ref(scaler)
                follower.settle()
                ran = follower.completed != before
                # A fused step runs all the same, and does nothing.
                skipped = not ran or any(bool(each.item()) for each in found if on_cpu(each))
                scale = scaler._scale
                if isinstance(scale, Tensor):
                    seen = float(scale.item()) if on_cpu(scale) else scale.detach().clone()
                    follower.scaled(seen, ran, skipped)
                self.recount(follower)
        except Exception as error:  # noqa: BLE001 - never in the way of a training
            let_through(error)
            self._followers.clear()


def _found(scaler: Any, follower: Follower) -> list[Tensor]:
    """Whether the gradients of a follower's optimizer overflowed, as the scaler has found on each device."""
    if follower.gone:
        return []
    states = [scaler._per_optimizer_states.get(id(member)) for member in members_of(follower.optimizer)]
    return [found for state in states if state for found in state["found_inf_per_device"].values()]


TAP = ScalerTap()
