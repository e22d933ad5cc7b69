"""Optimizers of a tensor or a few each, which are stepped one after another, as the one that they make up.

Where the step is taken within backward each parameter has an optimizer of its own, whose `step` and
`zero_grad` a hook calls as soon as the gradient is there: no two gradients need be in memory at a time. A
step of all of them is one backward pass, or where they are stepped behind it, one round.
"""

import threading
import time
import timeit
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optwatch_agent.calls import is_nested, is_rehearsal
from optwatch_agent.outside import outside, skipped
from optwatch_agent.phases import BACKWARD_BEGINS, BACKWARD_ENDS, PHASES, Phases
from optwatch_agent.signals import let_through

_FEW = 8
"""So many optimizers of one tensor each may well be of several networks."""


class Listener(Protocol):
    """Who does something at the step of each member."""

    @property
    def listens(self) -> bool:
        """Whether it does so at the step of all that is under way."""
        ...

    def before_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """A member's update comes."""
        ...

    def after_member(self, member: torch.optim.Optimizer, number: int) -> None:
        """It is done."""
        ...


class Joint(torch.optim.Optimizer):
    """Looks like the optimizer that its members are together: its groups are theirs, and its step hooks are
    called before the first of a step and after the last. Keeps none of them alive."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        # Nothing of the base's: what it would make, the members have.
        self.kind: type[torch.optim.Optimizer] = type(members[0])
        """The class of all members."""
        self.listeners: list[Listener] = []
        """Called in this order before a member's update, and after it in reverse."""
        self._members = [weakref.ref(member) for member in members]
        self._numbers = {id(member): number for number, member in enumerate(members)}
        self._optimizer_step_pre_hooks: OrderedDict[int, Any] = OrderedDict()
        self._optimizer_step_post_hooks: OrderedDict[int, Any] = OrderedDict()
        self._optimizer_load_state_dict_post_hooks: OrderedDict[int, Any] = OrderedDict()
        self._failed: Callable[[Exception], None] = _ignore
        # The hooks of parameters on several devices are called by a thread of each.
        self._lock = threading.RLock()
        self._under_way = False
        self._phases: Phases | None = None
        """Those of the thread that takes it."""
        self._in_backward = False
        """Whether the step that is under way is taken within backward."""
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._count = 0
        """Members that there were when it began."""
        self._left_out: dict[int, int] = {}
        """Calls of a member's that are within its step, or none of the training, and have yet to end."""
        self._listening: list[Listener] = []
        """Those that listen at the step that is under way."""
        self._deaf = False
        """Whether nothing is done at the other members' steps: it is over when the backward pass is."""
        self._deaf_time = 0.0
        """Seconds that all their calls take then."""
        self._spent = 0.0

    @property
    def members(self) -> list[torch.optim.Optimizer]:
        """The optimizers that the script has not dropped."""
        return [member for reference in self._members if (member := reference()) is not None]

    @property
    def gone(self) -> bool:
        """Whether the script has dropped them all."""
        return all(reference() is None for reference in self._members)

    def number(self, member: torch.optim.Optimizer) -> int:
        """What a member is known by, from the first one on."""
        return self._numbers[id(member)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> "States":  # type: ignore[override]
        return States(self.members)

    def has(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is a member."""
        number = self._numbers.get(id(optimizer))
        return number is not None and self._members[number]() is optimizer

    def take_spent(self) -> float:
        """Seconds that the hooks of members took since the last call, without those of the steps of all."""
        spent, self._spent = self._spent, 0.0
        return spent

    def hook(self, handles: list[RemovableHandle], failed: Callable[[Exception], None]) -> None:
        """Follow the members from now on; what takes the hooks off is added to `handles`. `failed` is told of
        an error of ours."""
        self._failed = failed
        before, after = self._unless_deaf(self._before), self._unless_deaf(self._after)
        loaded = outside(self._loaded)
        for member in self.members:
            handles.append(member.register_step_pre_hook(before))
            handles.append(member.register_step_post_hook(after))
            if hasattr(member, "_optimizer_load_state_dict_post_hooks"):
                handles.append(member.register_load_state_dict_post_hook(loaded))
        handles.append(handle := RemovableHandle(BACKWARD_BEGINS))
        BACKWARD_BEGINS[handle.id] = self._begins
        handles.append(handle := RemovableHandle(BACKWARD_ENDS))
        BACKWARD_ENDS[handle.id] = self._ends
        self._deaf = True
        of_one = min(timeit.repeat(lambda: before(self, (), {}), number=20)) / 20
        self._deaf_time = 2 * len(self._members) * of_one
        self._deaf = False

    def _unless_deaf(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook of members, which costs next to nothing where nobody listens."""
        outer = outside(hook)

        def called(member: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if not self._deaf:
                outer(member, args, kwargs)

        return skipped(called)

    # --- hooks ----------------------------------------------------------------------------------------

    def _before(self, member: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with self._lock:
            began = time.perf_counter()
            number = self.number(member)
            left_out = self._left_out.pop(number, 0)
            is_open = number in self._begun and number not in self._done
            if (left_out or is_open) and is_nested(member):
                self._left_out[number] = left_out + 1
                return
            if kwargs and is_rehearsal(member):
                self._left_out[number] = 1
                return
            if not self._in_backward and number in self._begun:  # without the others, a step of its own
                self._end()
            self._begun.add(number)
            if not self._under_way:
                self._phases = PHASES.here()
                self._under_way, self._in_backward = True, self._phases.is_backward
                self._count = len(self.members)
                self._call(self._optimizer_step_pre_hooks)
                began = time.perf_counter()
                self._listening = [each for each in self.listeners if each.listens]
                if self._in_backward and not self._listening:
                    self._deaf = True
                    self._spent += self._deaf_time
                    return
            self._done.discard(number)
            if self._listening:
                self._tell("before_member", self._listening, member, number)
            self._spent += time.perf_counter() - began

    def _after(self, member: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with self._lock:
            began = time.perf_counter()
            number = self.number(member)
            if left_out := self._left_out.pop(number, 0):
                self._left_out[number] = left_out - 1
                return
            if number not in self._begun:
                return
            if self._listening:
                self._tell("after_member", self._listening[::-1], member, number)
            self._done.add(number)
            self._spent += time.perf_counter() - began
            if not self._in_backward and len(self._done) == self._count:
                self._end()

    def _begins(self, phases: Phases) -> None:
        """A backward pass begins: what was stepped behind the last one was its step."""
        with self._lock:
            if self._under_way and not self._in_backward and phases is self._phases:
                self._end()

    def _ends(self, phases: Phases, raised: bool) -> None:
        """A backward pass is over."""
        with self._lock:
            if self._under_way and self._in_backward and phases is self._phases:
                self._end(raised)

    def _end(self, raised: bool = False) -> None:
        """The step of all is over; one in which something was raised is none, as that of any optimizer."""
        raised = raised or (self._begun != self._done and not self._deaf)
        self._deaf = False
        try:
            if not raised:
                self._call(self._optimizer_step_post_hooks)
        finally:
            self._under_way = self._in_backward = False
            self._begun, self._done = set(), set()

    def _loaded(self, member: torch.optim.Optimizer) -> None:
        if self.number(member) == 0:
            for hook in tuple(self._optimizer_load_state_dict_post_hooks.values()):
                hook(self)

    def _call(self, hooks: OrderedDict[int, Any]) -> None:
        for hook in tuple(hooks.values()):
            hook(self, (self,), {})

    def _tell(
        self,
        call: Literal["before_member", "after_member"],
        listeners: Sequence[Listener],
        member: torch.optim.Optimizer,
        number: int,
    ) -> None:
        try:
            for listener in listeners:
                getattr(listener, call)(member, number)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._failed(error)


class States(MutableMapping[Any, Any]):
    """What the members keep of their parameters, as one mapping."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self._states = [member.state for member in members]
        self._of = {
            id(param): member.state
            for member in members
            for group in member.param_groups
            for param in group["params"]
        }

    def __getitem__(self, param: Any) -> Any:
        state: Any = self._of.get(id(param), {})
        if param not in state:  # it would make one
            raise KeyError(param)
        return state[param]

    def __setitem__(self, param: Any, value: Any) -> None:
        self._of[id(param)][param] = value

    def __delitem__(self, param: Any) -> None:
        del self._of[id(param)][param]

    def __iter__(self) -> Iterator[Any]:
        return (key for state in self._states for key in state if isinstance(key, Tensor))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def joined(optimizers: dict[str, torch.optim.Optimizer], most: int) -> dict[str, torch.optim.Optimizer]:
    """The same optimizers, of each class as one where they are the parameters', or more than `most`."""
    count = len(optimizers)
    tensors = [sum(len(group["params"]) for group in each.param_groups) for each in optimizers.values()]
    if count <= (_FEW if max(tensors) == 1 else most):
        return optimizers
    kinds: dict[type, list[torch.optim.Optimizer]] = {}
    for optimizer in optimizers.values():
        kinds.setdefault(type(optimizer), []).append(optimizer)
    return {
        f"optimizer {i}" if len(kinds) > 1 else "optimizer": Joint(members)
        for i, members in enumerate(kinds.values())
    }


def kind_of(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer]:
    """The class of an optimizer, of a joint one that of its members."""
    return optimizer.kind if isinstance(optimizer, Joint) else type(optimizer)


def members_of(optimizer: torch.optim.Optimizer) -> Sequence[torch.optim.Optimizer]:
    """The members of a joint optimizer, of any other itself."""
    return optimizer.members if isinstance(optimizer, Joint) else (optimizer,)


def _ignore(error: Exception) -> None:
    pass
