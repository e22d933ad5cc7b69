"""Attaching to the optimizers of a script that knows nothing of optwatch.

A hook that torch calls at the step of every optimizer attaches at the first one, to all optimizers that
are there by then as one run; a later one that was made since becomes a run of its own. An optimizer of one
tensor may be the first of many that are made as a step goes on, as Pyro makes them: these are attached to
when one of them steps again.
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
from optwatch_agent.signals import let_through
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
        """Those of one tensor that have stepped once, when there was no other one to watch."""
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
            may_wait = optimizer not in self._waiting and self._waiting.issuperset(others)
            if may_wait and _may_be_of_many(optimizer, args, kwargs):
                self._waiting.add(optimizer)
                self.why_nothing = (
                    "the only optimizer that took a step has one tensor, and took no second one"
                )
                return
            # The one that steps comes first: it is the one whose steps are the run's.
            self._watch([optimizer, *others])
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            log.warning("optwatch: cannot attach to %s: %r", type(optimizer).__name__, error)

    def _watch(self, there: Sequence[torch.optim.Optimizer]) -> None:
        self.why_nothing = ""
        self._known.update(there)
        inner = {id(part): part for each in there for part in all_innermost(each)}
        self._known.update(inner.values())
        fresh = [each for each in inner.values() if not is_watched(each)]
        if not fresh:
            return
        named = {f"optimizer {i}": each for i, each in enumerate(fresh)}
        name = self._name or default_name()
        if self.watches:
            name = f"{name} {len(self.watches) + 1}"
        self.watches.append(attach(named if len(fresh) > 1 else fresh[0], model=_model_of(fresh), name=name))


def _may_be_of_many(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> bool:
    """Whether an optimizer has one tensor only, and its step no whole training, as one of L-BFGS may be."""
    tensors = sum(len(group["params"]) for group in optimizer.param_groups)
    return tensors == 1 and closure_of(args, kwargs) is None


def _living(kind: type[Any]) -> list[Any]:
    # By type alone: `isinstance` asks lazy objects for their class, and some warn then.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


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
