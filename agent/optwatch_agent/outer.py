"""Wrappers that were taken off an optimizer, for what they keep of its parameters.

A Lookahead wrapper keeps the slow weights: a rollback that left them would be undone by the next
synchronisation, which pulls the parameters towards them.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from optwatch_agent.joint import members_of

_wrappers: "weakref.WeakKeyDictionary[torch.optim.Optimizer, list[weakref.ref[Any]]]" = (
    weakref.WeakKeyDictionary()
)


def remember(optimizer: torch.optim.Optimizer, wrappers: Sequence[Any]) -> None:
    """Note the wrappers around an optimizer."""
    found = []
    for wrapper in wrappers:
        try:
            found.append(weakref.ref(wrapper))
        except TypeError:  # it allows no weak reference, and nothing else would let it go
            continue
    _wrappers[optimizer] = found


def states_of(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """The state, by parameter, of each wrapper that keeps one of its own."""
    for member in members_of(optimizer):
        for reference in _wrappers.get(member, ()):
            wrapper = reference()
            state = vars(wrapper).get("state") if hasattr(wrapper, "__dict__") else None
            if isinstance(state, Mapping) and state is not member.state:
                yield state
