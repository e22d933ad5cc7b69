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
    def completed(self) -> int: ...

    def scaled(self, scale: Value, ran: bool, skipped: bool) -> None:
        """An update of the scaler: the scale that the step had, whether `step` ran, and whether in vain."""
        ...


class ScalerTap:
    """Sees every scaler of the process at its update, and tells the followers of its optimizers."""

    def __init__(self) -> None:
        self.patch = Patch(torch.amp.grad_scaler.GradScaler, "update", self._wrap)
        self._followers: dict[int, tuple[Follower, int]] = {}
        self._scalers: dict[int, weakref.ref[Any]] = {}
        self._inside: set[int] = set()
        """The ids of scalers whose `update` is under way."""
        self._own: dict[tuple[type, str], Patch] = {}

    def install(self, follower: Follower) -> None:
        self._followers[id(follower.optimizer)] = (follower, follower.completed)
        self._scalers.pop(id(follower.optimizer), None)
        self.patch.install()

    def recount(self, follower: Follower) -> None:
        """The follower's steps go on from another count."""
        if id(follower.optimizer) in self._followers:
            self._followers[id(follower.optimizer)] = (follower, follower.completed)

    def remove(self, follower: Follower) -> None:
        # By identity: the optimizer may be gone, and another one have its id.
        self._followers = {
            number: pair for number, pair in self._followers.items() if pair[0] is not follower
        }
        self.patch.remove()

    def scaler_of(self, optimizer: torch.optim.Optimizer) -> Any:
        """The scaler that was seen to scale an optimizer's gradients, None before it was."""
        reference = self._scalers.get(id(optimizer)) if id(optimizer) in self._followers else None
        return None if reference is None else reference()

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
            for number, (follower, before) in tuple(self._followers.items()):
                state = scaler._per_optimizer_states.get(number)
                if not state or not state["found_inf_per_device"]:
                    continue
                self._scalers[number] = weakref.ref(scaler)
                ran = follower.completed != before
                skipped = not ran or any(  # a fused step runs all the same, and does nothing
                    bool(found.item()) for found in state["found_inf_per_device"].values() if on_cpu(found)
                )
                scale = scaler._scale
                if isinstance(scale, Tensor):
                    seen = float(scale.item()) if on_cpu(scale) else scale.detach().clone()
                    follower.scaled(seen, ran, skipped)
                self._followers[number] = (follower, follower.completed)
        except Exception as error:  # noqa: BLE001 - never in the way of a training
            let_through(error)
            self._followers.clear()


TAP = ScalerTap()
