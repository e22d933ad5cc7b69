"""The global norm of an optimizer's gradients, and the user's own clipping of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from optwatch_agent import clips
from optwatch_agent.norms import total_norm
from optwatch_agent.parts import Parts
from optwatch_agent.recorder import Value
from optwatch_agent.tensors import local, on_cpu


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
            params = [p for group in optimizer.param_groups for p in group["params"]]
            return dict(parts.gradients(params))
        grads: list[Tensor] = [p.grad for p in with_grad]
        if not self._plain:
            self._plain = all(map(_is_plain, grads))
            if not self._plain:
                grads = [local(grad) for grad in grads]
        if not grads or not (grads[0].is_cpu if self._plain else all(map(on_cpu, grads))):
            return {}
        norm = total_norm(grads)
        values: dict[str, Value] = {"grad_norm": norm}
        if (clip := clips.TAP.take(with_grad)) is not None:
            values["user_max_norm"] = clip.max_norm
            values["user_clip_share"] = clip.share
            if clip.max_norm > 0:
                # The clipping divided by the norm that torch found; ours is the accurate one.
                values["grad_norm_raw"] = norm / min(1.0, clip.max_norm / (clip.norm + 1e-6))
        return values


def before_clipping(values: Mapping[str, Value]) -> float | None:
    """The norm before any clipping among measured columns, None where none was measured."""
    norm = values.get("grad_norm_raw", values.get("grad_norm"))
    return norm if isinstance(norm, float) else None


def _is_plain(grad: Tensor) -> bool:
    """Whether the gradient can be read as it is."""
    return type(grad) is Tensor and grad.is_cpu and grad.layout is torch.strided and not grad.is_complex()
