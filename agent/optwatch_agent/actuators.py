"""What the agent can do to an optimizer: restart it, scale its LR, clip its gradients.

Each works in place on the optimizer as it is now and caches nothing of it: `load_state_dict` replaces
the state and the groups. All are called by the training thread, between the beginning of a step and its
update.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optwatch.wire.actions import (
    AUTO_LEAST,
    AUTO_OVER,
    Action,
    Clip,
    Perturb,
    Restart,
    Rollback,
    ScaleLr,
    Snapshot,
    Stop,
    usual_norm,
)
from optwatch_agent import restarts, shards
from optwatch_agent.device_guard import UsualNorm, norm_there
from optwatch_agent.device_norms import clipped
from optwatch_agent.globalnorm import global_norm, gradients_of, is_spread, is_unsummed
from optwatch_agent.joint import ONE_BY_ONE, Joint, kind_of
from optwatch_agent.loose import Loose
from optwatch_agent.lr_scale import LrScale
from optwatch_agent.noise import Noise, perturb_parameters
from optwatch_agent.reflexes import AdaptiveNorm
from optwatch_agent.snapshots import Snapshots
from optwatch_agent.tensors import local, on_cpu, on_device, scalar

_NOT_STEADY = "some of the parameters' optimizers do not step each time, or that is not known yet"


class Actuators:
    """The interventions in force on one optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, snapshots: Snapshots | None = None) -> None:
        self.lr_scale = LrScale(optimizer)
        self.snapshots = snapshots or Snapshots([optimizer], None, None, 0, 0.0)
        """Those of all optimizers of the attachment."""
        self.loss: Any = None
        """The loss of the step that ends, for a snapshot that is taken after it."""
        self.max_norm: float | None = None
        self.adaptive: AdaptiveNorm | UsualNorm | None = None
        """What `max_norm` follows, where it does: on a device, some steps later."""
        self.noise: Noise | None = None
        self.sparse = False
        """Whether there was a sparse gradient when they were last looked at."""
        self.recent_norms: deque[float] = deque(maxlen=AUTO_OVER)
        """Global gradient norms before any clip of ours, for `clip --max-norm auto`."""
        self.scaled = False
        """Whether a GradScaler decides if the optimizer steps."""
        self.unsummed = False
        """Whether the gradients were yet to be summed over ranks when they were last looked at."""
        self._held = Loose(optimizer)

    def look_at_gradients(self) -> None:
        """See what kind the gradients are. Called by the training thread, when they are there."""
        self.unsummed = is_unsummed(self._optimizer)
        self.sparse = any(grad.layout is not torch.strided for grad in gradients_of(self._optimizer))

    def refusal(self, action: Action, ranks: int) -> str | None:
        """Why an action cannot be done on one of so many ranks, None where it can.

        Called by the link's thread, which must not touch a gradient: a backward pass sets them without the
        interpreter's lock, and one that is let go meanwhile ends the process.
        """
        if self._held.gone:
            return "the optimizer was dropped"
        optimizer = self._optimizer
        unsteady = isinstance(optimizer, Joint) and not optimizer.is_steady
        if ranks > 1 and unsteady and self.follows_update(action):  # some ranks might be late, and others not
            return _NOT_STEADY
        match action:
            case Restart():
                return restarts.refusal(self._optimizer, action)
            case ScaleLr():
                if any(not isinstance(g.get("lr"), (int, float, Tensor)) for g in self._groups):
                    return f"{kind_of(self._optimizer).__name__} has a param_group without an lr"
            case Clip(off=False) if reason := self._clip_refusal(self.unsummed):
                return reason
            case Clip(max_norm="auto") if ranks > 1:
                return "clip auto: each rank would come to a number of its own; give one"
            case Clip(max_norm="auto") if len(self.recent_norms) < AUTO_LEAST:
                return f"clip auto needs {AUTO_LEAST} measured gradient norms, there are fewer yet"
            case Perturb(target="grad", off=False) if reason := self._noise_refusal():
                return reason
            case Snapshot():
                return self.snapshots.no_room() or None
            case Rollback(to_step=int(step)):
                return self.snapshots.missing(step) or None
            case Rollback() if ranks > 1:
                return "rollback: each rank would choose a snapshot of its own; name a step"
            case Rollback() if not self.snapshots.steps:
                return self.snapshots.no_room() or "there is no snapshot yet"
        return None

    def hold(self, vote: str, action: Action) -> bool:
        """Keep what a command needs until `let_go`; False where that is gone meanwhile."""
        if isinstance(action, Rollback) and isinstance(action.to_step, int):
            return self.snapshots.hold(vote, action.to_step)
        return True

    def let_go(self, vote: str) -> None:
        """The command is over."""
        self.snapshots.let_go(vote)

    def needs_wrapper(self, action: Action) -> bool:
        """Whether `step` has to be wrapped before the action takes effect."""
        return isinstance(action, ScaleLr) or (isinstance(action, Restart) and action.warmup > 0)

    def follows_update(self, action: Action) -> bool:
        """Whether the action takes effect after the update of its step: a rollback before it would meet
        gradients of the parameters that it has just put away, and a backward pass that steps the members of a
        joint optimizer needs the parameters of the others as they were."""
        if isinstance(action, Perturb):
            return action.target == "param" and isinstance(self._optimizer, Joint)
        return isinstance(action, (Snapshot, Rollback))

    def apply(self, action: Action, step: int = 0) -> dict[str, float]:
        """Do it, now, at a step; numbers for the report.

        Raises:
            RuntimeError: it cannot be done now.
        """
        optimizer = self._optimizer
        if isinstance(optimizer, Joint) and optimizer.is_late and self.follows_update(action):
            raise RuntimeError(_NOT_STEADY)
        match action:
            case Restart():
                restarts.restart(self._optimizer, action.moments)
                if action.warmup:
                    self.lr_scale.warm_up(action.warmup)
                return {}
            case ScaleLr():
                target = 1.0 if action.factor is None else self.lr_scale.target * action.factor
                self.lr_scale.go_to(target, action.ramp)
                return {"lr_scale": target}
            case Clip():
                # The gradients are there only now.
                if not action.off and (reason := self._clip_refusal(is_unsummed(self._optimizer))):
                    raise RuntimeError(reason)
                self.adaptive = None
                if action.max_norm == "auto":
                    self.max_norm = usual_norm(self.recent_norms)
                    self.adaptive = self._following(self.recent_norms, self.max_norm)
                else:
                    self.max_norm = action.max_norm
                    if action.adapt and self.max_norm is not None:
                        self.adaptive = self._following((), self.max_norm)
                return {} if self.max_norm is None else {"max_norm": self.max_norm}
            case Perturb(target="param"):
                perturb_parameters(self._optimizer, action, step)
                return {"std": action.std or 0.0}
            case Perturb():
                self.noise = None if action.off else Noise(action, step)
                return {} if self.noise is None else {"std": self.noise.std}
            case Snapshot():
                if reason := self.snapshots.take(step, self.loss):
                    raise RuntimeError(reason)
                return {"bytes": float(self.snapshots.size or 0)}
            case Rollback():
                to = max(self.snapshots.steps, default=0) if action.to_step == "last-good" else action.to_step
                self.snapshots.restore(to, action.rng)
                return {"to_step": float(to)}
            case Stop():  # `Control.stopped` tells the script
                return {}

    def norm(self) -> float:
        """The global norm of the gradients. Where the parameters are sharded this is a collective."""
        scaled_by = getattr(self._optimizer, "grad_scale", None)  # a fused step under a GradScaler
        try:
            norm = global_norm(self._optimizer)
        except BaseException:
            self.max_norm = None  # the other ranks may be gone, and each step would wait for them anew
            raise
        if scaled_by is not None:
            norm /= scalar(scaled_by)
        return norm

    def clip(self, max_norm: float, norm: float) -> tuple[float, float]:
        """Clip the gradients, whose global norm is `norm`, to another; the norm before and after."""
        # As torch.nn.utils.clip_grad_norm_ does. A non-finite norm is for others to handle.
        coefficient = max_norm / (norm + 1e-6)
        if not math.isfinite(norm) or coefficient >= 1:
            return norm, norm
        torch._foreach_mul_([shards.local(grad) for grad in gradients_of(self._optimizer)], coefficient)
        return norm, norm * coefficient

    def see_clipped(self, norm: float) -> None:
        """Take account of a norm as it was after the clip."""
        if isinstance(self.adaptive, AdaptiveNorm):
            self.adaptive.see(norm)
            self.max_norm = self.adaptive.limit

    @property
    def there(self) -> bool:
        """Whether the gradients are on a device; a clip was refused unless all of them are where one is."""
        param = next((param for group in self._groups for param in group["params"]), None)
        return param is not None and on_device(local(param))

    def clip_there(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Clip gradients on a device to `max_norm`: the norm before and after, float64[], and the limit from
        then on, if that follows what is usual. Nothing waits for it."""
        assert self.max_norm is not None
        grads = [local(grad) for grad in gradients_of(self._optimizer)]
        scaled_by = getattr(self._optimizer, "grad_scale", None)
        with torch.no_grad():
            norm = norm_there(self._optimizer)
            if scaled_by is not None:
                norm = norm / scaled_by
            usual = self.adaptive if isinstance(self.adaptive, UsualNorm) else None
            after = clipped(grads, norm, self.max_norm if usual is None else usual.limit)
            if usual is None:
                return norm, after, None
            usual.see(after)
            return norm, after, usual.limit

    def hear_norm(self, numbers: list[float]) -> dict[str, float]:
        """Take account of a norm before any clip that a device has worked out; no columns follow."""
        self.recent_norms.append(numbers[0])
        return {}

    def hear_limit(self, numbers: list[float]) -> dict[str, float]:
        """Take account of the limit that a device follows; no columns follow."""
        if isinstance(self.adaptive, UsualNorm):
            self.max_norm = numbers[0]
        return {}

    def _following(self, norms: Iterable[float], limit: float) -> AdaptiveNorm | UsualNorm:
        if self.there:
            return UsualNorm(local(self._groups[0]["params"][0]).device, [*norms], limit)
        return AdaptiveNorm(norms, limit)

    def _noise_refusal(self) -> str | None:
        """Why the gradients cannot be given noise."""
        if isinstance(self._optimizer, Joint):
            return f"perturb: {ONE_BY_ONE}"
        if isinstance(self._optimizer, torch.optim.LBFGS):
            return "perturb: LBFGS compares gradients of one step with each other"
        if self.unsummed:
            return "perturb: the gradients are yet to be summed over ranks, and their noise would be, too"
        if self.sparse:
            return "perturb: there are sparse gradients"
        return None

    def _clip_refusal(self, unsummed: bool) -> str | None:
        """Why there is no global norm to clip to. Over ranks it takes a collective at every step, and a rank
        that left one out would leave the others waiting."""
        if isinstance(self._optimizer, Joint):
            return f"clip: {ONE_BY_ONE}"
        if unsummed:
            return "clip: the gradients are yet to be summed over ranks when the optimizer steps"
        params = [local(param) for group in self._groups for param in group["params"]]
        if not all(map(on_cpu, params)):
            if not all(map(on_device, params)) or len({param.device for param in params}) > 1:
                return "clip: the gradients are on several devices, or on one that is neither CPU nor CUDA"
            if self.sparse:
                return "clip: there are sparse gradients, on a device"
        if not is_spread(self._optimizer):
            return None
        if self.scaled:
            return "clip: a GradScaler may skip the step on one rank, and the others would wait for its norm"
        if isinstance(self._optimizer, torch.optim.LBFGS):
            return "clip: LBFGS may evaluate the loss more often on one rank, and the others would wait"
        return None

    def release(self) -> None:
        """Undo all that is in force and leave no trace."""
        self.max_norm = self.adaptive = self.noise = None
        self.lr_scale.release()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self._held.optimizer

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups
