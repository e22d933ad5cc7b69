"""Attaching to the optimizers of a script that knows nothing of optwatch.

A hook that torch calls at the step of every optimizer attaches at the first one, to all optimizers that
are there by then as one run; a later one that was made since becomes a run of its own. Where that first one
has one tensor only, and others have gradients but no optimizer, these may get theirs as the step goes on, as
from Pyro: all are attached to when one of them steps again.
"""

import functools
import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from optwatch_agent import clips, losses
from optwatch_agent.agent import is_watched
from optwatch_agent.attach import all_innermost, attach
from optwatch_agent.calls import closure_of
from optwatch_agent.identity import default_name
from optwatch_agent.outside import outside
from optwatch_agent.patches import Patch
from optwatch_agent.roles import steps_so_far
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import PLAIN
from optwatch_agent.watch import Watch

log = logging.getLogger("optwatch")


class Everything:
    """From now on to the end of the process, every optimizer that steps is watched.

    Nothing but the constructor of optimizers is touched before the first of them is made.
    """

    def __init__(self, name: str | None) -> None:
        self.watches: list[Watch] = []
        self.why_nothing = "no torch.optim.Optimizer took a step in this process"
        """Why no optimizer is watched, "" where one is."""
        self._name = name
        self._ready = False
        self._made: list[weakref.ref[torch.optim.Optimizer]] = []
        """In the order in which they were made, which is the same on every rank."""
        self._known: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._waiting: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        """Those of one tensor each that have stepped once and may be some of many."""
        Patch(torch.optim.Optimizer, "__init__", self._wrap_init).install()

    def _wrap_init(self, init: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(init)
        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            init(optimizer, *args, **kwargs)
            try:
                self._take(optimizer)
            except Exception as error:  # noqa: BLE001 - never in the way of the script
                let_through(error)
                log.warning("optwatch: optimizers are not watched: %r", error)

        return __init__

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        self._made = [ref for ref in self._made if ref() is not None]
        self._made.append(weakref.ref(optimizer))
        if not self._ready:
            self._ready = True
            # The first loss comes before the first step.
            losses.TAP.install()
            clips.TAP.patch.install()
            register_optimizer_step_pre_hook(outside(self._stepping))

    def _stepping(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        try:
            if optimizer in self._known:
                return
            others = [other for ref in self._made if (other := ref()) is not None and other is not optimizer]
            others = [other for other in others if other not in self._known]
            if self._may_be_of_many(optimizer, others, closure_of(args, kwargs)):
                self._waiting.add(optimizer)
                self.why_nothing = "the only optimizers that took a step have one tensor, and took no second"
                losses.TAP.window.close()
                return
            # The one that steps comes first: it is the one whose steps are the run's.
            self._watch([optimizer, *others])
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            log.warning("optwatch: cannot attach to %s: %r", type(optimizer).__name__, error)

    def _may_be_of_many(
        self, optimizer: torch.optim.Optimizer, others: Sequence[torch.optim.Optimizer], closure: object
    ) -> bool:
        """Whether there may be others to come beside an optimizer that steps for the first time. With a
        closure its step may be a whole training, as one of L-BFGS."""
        if optimizer in self._waiting or not self._waiting.issuperset(others) or closure is not None:
            return False
        is_of_one = sum(len(group["params"]) for group in optimizer.param_groups) == 1
        return is_of_one and (bool(self._waiting) or _are_without([ref() for ref in self._made]))

    def _watch(self, there: Sequence[torch.optim.Optimizer]) -> None:
        # A step of one that waited is behind it, which not every kind counts.
        step = max(1, steps_so_far(there[0])) if there[0] in self._waiting else None
        self.why_nothing = ""
        self._waiting.clear()
        self._known.update(there)
        inner = {id(part): part for each in there for part in all_innermost(each)}
        self._known.update(inner.values())
        fresh = [each for each in inner.values() if not is_watched(each)]
        if not fresh:
            return
        given = {f"optimizer {i}": each for i, each in enumerate(fresh)} if len(fresh) > 1 else fresh[0]
        name = self._name or default_name()
        if self.watches:
            name = f"{name} {len(self.watches) + 1}"
        self.watches.append(attach(given, model=_model_of(fresh), name=name, step=step))


def _living(kind: type[Any]) -> list[Any]:
    # By type alone: `isinstance` asks lazy objects for their class, and some warn then.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


def _are_without(optimizers: Sequence[torch.optim.Optimizer | None]) -> bool:
    """Whether a gradient was made for a tensor that is in none of the optimizers; no, where none can be
    looked at."""
    if losses.TAP.others_pass:
        return False
    there = [each for each in optimizers if each is not None]
    held = {id(param) for each in there for group in each.param_groups for param in group["params"]}
    return any(
        type(tensor) in PLAIN and tensor.is_leaf and tensor.grad is not None and id(tensor) not in held
        for tensor in _living(torch.Tensor)
    )


def _model_of(optimizers: Sequence[torch.optim.Optimizer]) -> nn.Module | None:
    """The outermost module that holds the most of the optimizers' parameters."""
    wanted = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    modules: list[nn.Module] = _living(nn.Module)
    inner = {id(child) for module in modules for child in module.children()}
    best, most = None, 0
    for module in modules:
        if id(module) not in inner:
            held = sum(id(p) in wanted for p in module.parameters())
            if held > most:
                best, most = module, held
    return best
