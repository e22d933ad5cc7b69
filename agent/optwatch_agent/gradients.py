"""The global norm of an optimizer's gradients, and the user's own clipping of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from optwatch_agent import clips, device_norms
from optwatch_agent.norms import total_norm
from optwatch_agent.parts import Parts
from optwatch_agent.recorder import Value
from optwatch_agent.tensors import local, on_cpu, on_device, params_of


class Gradients:
    """Reads the gradients of one optimizer as they are now."""

    def __init__(self) -> None:
        self._plain = False

    def look_again(self) -> None:
        """Parameters were added, or something failed: take nothing for known about the gradients."""
        self._plain = False

    def norms(self, optimizer: torch.optim.Optimizer, parts: Parts | None) -> dict[str, Value]:
        """The norm and, where the user clips, the one before, their max_norm and how often it bites."""
        with_grad = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parts is not None:
            params = params_of(optimizer)
            return dict(parts.gradients(params))
        grads: list[Tensor] = [p.grad for p in with_grad]
        if not grads:
            return {}
        if not (self._plain and grads[0].is_cpu):
            self._plain = all(map(_is_plain, grads))
        norm = total_norm(grads) if self._plain else norm_of(grads)
        if norm is None:
            return {}
        return as_columns(norm, clips.TAP.take(with_grad))

    def clipped(self, optimizer: torch.optim.Optimizer, norm: Value) -> dict[str, Value]:
        """The columns of a norm that a command clips, and of the user's own clipping before it."""
        with_grad = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return as_columns(norm, clips.TAP.take(with_grad))


def as_columns(norm: Value, clip: clips.Seen | None) -> dict[str, Value]:
    """A norm, and what is known of the user's clipping of the gradients that it is of."""
    values: dict[str, Value] = {"grad_norm": norm}
    if clip is not None:
        values["user_max_norm"] = clip.max_norm
        values["user_clip_share"] = clip.share
        if clip.max_norm > 0:
            values["grad_norm_raw"] = _before(norm, clip)
    return values


def before_clipping(values: Mapping[str, Value]) -> Value | None:
    """The norm before any clipping among measured columns, None where none was measured."""
    return values.get("grad_norm_raw", values.get("grad_norm"))


def norm_of(grads: list[Tensor]) -> Value | None:
    """The norm of gradients, None where it cannot be had."""
    if any(map(_waits_to_be_read, grads)):
        return None
    grads = [local(grad) for grad in grads]
    return total_norm(grads) if all(map(on_cpu, grads)) else _norm_on_device(grads)


def _norm_on_device(grads: list[Tensor]) -> Tensor | None:
    """The norm, on the first device, of gradients of which some are on devices; None where others are
    elsewhere than on the CPU."""
    here = [grad for grad in grads if not on_device(grad)]
    if not all(map(on_cpu, here)):
        return None
    norm = device_norms.total_norm([grad for grad in grads if on_device(grad)])
    return norm.square().add(total_norm(here) ** 2).sqrt() if here else norm


def _before(norm: Value, clip: clips.Seen) -> Value:
    """The norm before the clipping, which divided by the norm that torch found; ours is the accurate one."""
    if isinstance(clip.norm, Tensor):
        before = clip.norm.to(norm.device, non_blocking=True) if isinstance(norm, Tensor) else clip.norm
        coefficient = (clip.max_norm / (before + 1e-6)).clamp(max=1.0)
        return torch.where(coefficient > 0, norm / coefficient, before)
    by = min(1.0, clip.max_norm / (clip.norm + 1e-6))
    return norm / by if by > 0 else clip.norm  # an infinite one was clipped to nothing


def _waits_to_be_read(grad: Tensor) -> bool:
    """Whether the host would have to ask a device: for how many values a sparse gradient has."""
    return on_device(grad) and grad.layout is not torch.strided


def _is_plain(grad: Tensor) -> bool:
    """Whether the gradient can be read as it is."""
    return type(grad) is Tensor and on_cpu(grad) and grad.layout is torch.strided and not grad.is_complex()
