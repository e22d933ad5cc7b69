"""Attaching to the optimizers of a script that knows nothing of optwatch.

A hook that torch calls at the step of every optimizer attaches at the first one, to all optimizers that
are there by then as one run; a later one that was made since becomes a run of its own.
"""

import gc
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from optwatch_agent import clips, losses
from optwatch_agent.attach import attach, innermost
from optwatch_agent.watch import Watch

log = logging.getLogger("optwatch")


def run_unchanged(target: str, arguments: Sequence[str], *, module: bool, name: str | None) -> None:
    """Run a script, or a module as `python -m` does, with the agent attached; its exceptions pass through."""
    with Everything(name):
        sys.argv = [target, *arguments]
        if module:
            sys.path.insert(0, "")
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(target).resolve().parent))
            runpy.run_path(target, run_name="__main__")


class Everything:
    """While it is entered, every optimizer that steps is watched."""

    def __init__(self, name: str | None) -> None:
        self.watches: list[Watch] = []
        self._name = name
        self._known: set[int] = set()

    def __enter__(self) -> "Everything":
        # From the start, since the first loss comes before the first step.
        losses.TAP.install()
        clips.TAP.patch.install()
        disable: Any = torch.compiler.disable
        self._handle = register_optimizer_step_pre_hook(disable(self._stepping))
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        for watch in self.watches:
            watch.detach()
        losses.TAP.remove()
        clips.TAP.patch.remove()

    def _stepping(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) in self._known:
            return
        try:
            found = {id(optimizer): innermost(optimizer)}
            for other in _living(torch.optim.Optimizer):
                found.setdefault(id(innermost(other)), innermost(other))
            fresh = [each for number, each in found.items() if number not in self._known]
            self._known |= {id(each) for each in fresh} | {id(optimizer)}
            if len(fresh) == 1:
                named = {"optimizer": fresh[0]}
            else:
                named = {f"optimizer {i}": each for i, each in enumerate(fresh)}
            name = self._name
            if self.watches and name is not None:
                name = f"{name} {len(self.watches) + 1}"
            self.watches.append(attach(named, model=_model_of(fresh), name=name))
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._known.add(id(optimizer))
            log.warning("optwatch: cannot attach to %s: %r", type(optimizer).__name__, error)


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
