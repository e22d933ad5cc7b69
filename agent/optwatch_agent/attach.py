"""`attach`: the one line that a training script needs."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch

from optwatch.wire.actions import ACTIONS
from optwatch.wire.limits import MAX_OPTIMIZERS, MAX_STEP
from optwatch.wire.messages import ConfigValue
from optwatch.wire.places import find_daemons
from optwatch_agent import naming, outer, zero
from optwatch_agent.agent import Agent, make_way
from optwatch_agent.joint import joined, members_of
from optwatch_agent.reflexes import REFLEXES
from optwatch_agent.signals import let_through
from optwatch_agent.unsupported import unsupported, unsupported_model
from optwatch_agent.watch import Watch

log = logging.getLogger("optwatch")

_INNER = (
    *("optimizer", "base_optimizer", "_optimizer", "_base_optimizer", "original_optimizer"),
    *("optim", "_optim", "opt", "base"),
)
"""Attributes under which wrappers keep the optimizer that does the work."""
_MAY_BE_OTHERS = ("original_optimizer", "_optim", "opt")
"""Those under which an optimizer may keep one for other parameters than its own."""
_SEVERAL = ("optimizers", "chained_optimizers", "optimizer_dict", "optim_map", "optim_objs")
"""The same of containers, which keep several in a list or by parameter."""
_DEEPEST = 16
"""Wrappers around wrappers that are looked into."""


def attach(
    optimizer: Any,
    *,
    model: torch.nn.Module | None = None,
    name: str | None = None,
    daemon: str | None = None,
    loss: Literal["auto"] | None = "auto",
    scaler: torch.amp.grad_scaler.GradScaler | None = None,
    config: Mapping[str, Any] | None = None,
    step: int | None = None,
    allow: Iterable[str] | Literal["all"] = ("restart", "scale_lr", "clip"),
    guard: Iterable[str] | None = (),
    snapshots: int = 0,
    budget: float = 0.01,
    store: Any = None,
    strict: bool = False,
    comm_hook: bool = False,
) -> Watch:
    """Watch an optimizer, or several, from now on. Attaching anew ends the attachment before.

    Where there is a C compiler, the first training starts a process of low priority that builds the pass over
    all tensors, in a second or so; it ends with the last attachment at the latest. OPTWATCH_COMPILED=0 in the
    environment does without.

    Args:
        optimizer: a torch.optim.Optimizer, a wrapper around one or a list of several (as torchtitan has), or
            {name: optimizer} for several. Where parameters have optimizers of their own, as for a step within
            backward ({parameter: optimizer}), those of one class are shown as one, more than 64 are always.
        model: names the tensors, and shows its input and activation modules; may be wrapped (DDP,
            torch.compile).
        name: the run's name, by default the script's.
        daemon: its address, by default $OPTWATCH_DAEMON, the connection file or tcp://127.0.0.1:47017. Of
            several, with commas between them, the run's id decides for one, the same on all ranks.
        loss: "auto" sees the loss at backward(); None leaves it to `Watch.log(loss=…)`.
        scaler: needed only for a subclass of torch.amp.GradScaler whose `update` or `scale` does not call
            that of its base, such as FSDP's; others are seen by themselves.
        config: shown with the run and exported as hyper-parameters.
        step: global_step of the last completed step, when resuming; by default the optimizer's own count,
            also of a checkpoint that is loaded before the first step. A commanded restart sets it to zero,
            in later checkpoints too.
        allow: the actions that the daemon may command; () only observes.
        guard: reflexes within the step, without the daemon: "skip_nonfinite" does not apply a step whose
            gradients are not finite, 3 in a row or 20 of the last 1,000 at most; "clip" clips their norm to
            exp(median + 4 MAD) of the logarithms of the last 200. Each step reads all gradients once for it.
            Where parameters are spread over ranks their norm is an all_reduce at every step: give the same
            guard on every rank, and detach all of them after the same step. Then there is none under a
            GradScaler; a warning says so. On a CUDA device nothing waits for the verdict: an optimizer with
            `fused=True` leaves the step out, any other takes it with gradients of zero.
        snapshots: bytes of the host's memory for snapshots to roll back to; 0: none. The newest eight are
            kept at most; one is taken every 32 steps or more seldom, as the budget allows, and none that is
            not finite. Buffers such as BatchNorm's running statistics are in them with `model` only.
        budget: the most of the step time that measuring may take, of several optimizers all together.
        store: the torch.distributed.Store through which the ranks agree on commands, by default the one
            of the process group. The process group may also be made after this call.
        strict: raise `ControlLost` out of `optimizer.step()` where the store does not answer at the step
            of a command, so that this rank may have skipped what others applied; else it is an alarm only.
        comm_hook: with a DistributedDataParallel model, also measure each rank's own gradients before they
            are averaged (`local_norm`), which gives the gradient noise scale. It hooks into autograd at the
            steps that are measured; a communication hook of yours stays as it is, and so do all results.

    Raises:
        TypeError, ValueError: the call is wrong; the sentence says how. Nothing else ever raises.
    """
    optimizers = _optimizers(optimizer)
    if model is not None and not isinstance(model, torch.nn.Module):
        raise TypeError(f"model has to be a torch.nn.Module, not {type(model).__name__}")
    if model is not None and (reason := unsupported_model(model)):
        raise TypeError(reason)
    if loss not in ("auto", None):
        raise ValueError(f'loss is "auto" or None, not {loss!r}; give your own by watch.log(loss=…)')
    if step is not None and (
        not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP
    ):
        raise ValueError(f"step has to be a whole number of completed steps, not {step!r}")
    if not isinstance(budget, (int, float)) or not math.isfinite(budget) or not 0 < budget <= 1:
        raise ValueError(f"budget is a share of the step time such as 0.01, not {budget!r}")
    if not isinstance(snapshots, int) or isinstance(snapshots, bool) or snapshots < 0:
        raise ValueError(f"snapshots is a number of bytes such as 2 << 30, not {snapshots!r}")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name has to be a string, not {type(name).__name__}")
    if comm_hook and not naming.is_replicated(model):
        raise ValueError("comm_hook=True needs model=, wrapped in DistributedDataParallel")
    reflexes = _guard(guard)
    find_daemons(daemon)  # raises a ValueError for an address that cannot be parsed
    options: dict[str, Any] = {
        "scaler": _scaler(scaler),
        "config": _config(config),
        "allow": _allowed(allow),
        "store": _store(store),
    }
    try:
        make_way([member for optimizer in optimizers.values() for member in members_of(optimizer)])
        agent = Agent(
            optimizers,
            model=model,
            name=name,
            address=daemon,
            see_loss=loss == "auto",
            step=step,
            budget=float(budget),
            strict=bool(strict),
            comm_hook=bool(comm_hook),
            snapshots=snapshots,
            guard=reflexes,
            **options,
        )
    except Exception as error:
        let_through(error)
        log.warning("optwatch: attaching failed, nothing is watched: %r", error, exc_info=error)
        return Watch(None)
    for track in agent.tracks:
        if track.guard.refused:
            log.warning("optwatch: no guard for %s: %s", track.name, track.guard.refused)
    return Watch(agent)


def _optimizers(given: Any) -> dict[str, torch.optim.Optimizer]:
    if isinstance(given, Mapping) and not given:
        raise ValueError("attach was given an empty mapping of optimizers")
    named = given if isinstance(given, Mapping) else {"optimizer": given}
    found: dict[str, torch.optim.Optimizer] = {}
    for number, (name, each) in enumerate(named.items()):
        if isinstance(name, torch.Tensor):  # by parameter, as where each steps within backward
            name = f"optimizer {number}"
        parts = all_innermost(each)
        for i, part in enumerate(parts):
            label = f"{name} {i}" if len(parts) > 1 else str(name)
            if label in found:
                raise ValueError(f"attach was given two optimizers under the name {label!r}")
            found[label] = part
    if len({id(each) for each in found.values()}) < len(found):
        raise ValueError("attach was given the same optimizer under two names")
    return joined(found, MAX_OPTIMIZERS)


def all_innermost(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers that do the work of one that steps them all, as torchtitan's does; else the one that
    does."""
    found = given if _list_of(given) else innermost(given)
    return [innermost(each) for each in _list_of(found)] or [found]


def _list_of(given: Any) -> list[Any]:
    """What a container of optimizers holds, [] of anything else."""
    for attribute in _SEVERAL:
        held = _look(given, attribute)
        if isinstance(held, Mapping):
            held = [*held.values()]
        if isinstance(held, list | tuple) and held and all(map(_is_one, held)):
            # One that does work of its own has parameters that the others have not.
            inner = [each for each in held if isinstance(each, torch.optim.Optimizer) and each is not given]
            rest = set(_params(given)).difference(*map(_params, inner))
            return [] if rest or given in held else list(held)
    return []


def _params(given: Any) -> list[int]:
    groups = given.param_groups if isinstance(given, torch.optim.Optimizer) else ()
    return [id(param) for group in groups for param in group["params"] if param.requires_grad]


def _is_one(given: Any) -> bool:
    return isinstance(given, torch.optim.Optimizer) or _wraps(given)


def innermost(given: Any) -> torch.optim.Optimizer:
    """The optimizer that does the work, inside wrappers such as Accelerate's."""
    found, seen = given, {id(given)}
    wrappers: list[Any] = []
    for _ in range(_DEEPEST):
        if reason := unsupported(found):
            raise TypeError(reason)
        for attribute in _INNER:
            inner = _look(found, attribute)
            if isinstance(found, torch.optim.Optimizer):
                is_inner = isinstance(inner, torch.optim.Optimizer)
                is_inner = is_inner and not (attribute in _MAY_BE_OTHERS and _has_others(found, inner))
            else:
                is_inner = inner is not None and (isinstance(inner, torch.optim.Optimizer) or _wraps(inner))
            if is_inner:
                break
        else:
            break
        if id(inner) in seen:
            break
        seen.add(id(inner))
        wrappers.append(found)
        if isinstance(inner, torch.optim.Optimizer):
            zero.remember(found, inner)
        found = inner
    if not isinstance(found, torch.optim.Optimizer) or not hasattr(found, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"attach takes a torch.optim.Optimizer (or {{name: optimizer}}), not {type(given).__name__}"
        )
    if wrappers:
        outer.remember(found, wrappers)
    return found


def _has_others(optimizer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    """Whether both have parameters and share none: the first is no wrapper of the second."""
    held = {id(param) for group in _look(inner, "param_groups") or () for param in group["params"]}
    own = [id(param) for group in _look(optimizer, "param_groups") or () for param in group["params"]]
    return bool(own) and bool(held) and held.isdisjoint(own)


def _wraps(thing: Any) -> bool:
    return any(_look(thing, attribute) is not None for attribute in _INNER)


def _look(thing: Any, attribute: str) -> Any:
    """An attribute, None where there is none; what it raises to be asked is its own affair."""
    try:
        return getattr(thing, attribute, None)
    except Exception:  # noqa: BLE001 - it is not ours
        return None


def _scaler(scaler: Any) -> Any:
    if scaler is not None and not isinstance(scaler, torch.amp.grad_scaler.GradScaler):
        raise TypeError(f"scaler has to be a torch.amp.GradScaler, not {type(scaler).__name__}")
    return scaler


def _store(store: Any) -> Any:
    if store is None:
        return None
    if not torch.distributed.is_available() or not isinstance(
        store, torch.distributed.distributed_c10d.Store
    ):
        raise TypeError(f"store has to be a torch.distributed.Store, not {type(store).__name__}")
    return store


def _guard(guard: Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(guard, str):
        guard = (guard,)
    chosen = tuple(guard or ())
    for reflex in chosen:
        if reflex not in REFLEXES:
            raise ValueError(f"unknown reflex {reflex!r} in guard: it is one of {', '.join(REFLEXES)}")
    return chosen


def _allowed(allow: Iterable[str] | Literal["all"]) -> tuple[str, ...]:
    if allow == "all":
        return tuple(ACTIONS)
    if isinstance(allow, str):
        raise ValueError(f'allow is "all" or a sequence of actions such as ("clip",), not {allow!r}')
    chosen = tuple(allow)
    for action in chosen:
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r} in allow: it is one of {', '.join(ACTIONS)}")
    return chosen


def _config(config: Mapping[str, Any] | None) -> dict[str, ConfigValue]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise TypeError(f"config has to be a mapping, not {type(config).__name__}")
    return {str(key): naming.plain(value) for key, value in config.items()}
