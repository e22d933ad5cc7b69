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
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optwatch_agent.calls import is_nested, is_rehearsal, is_stepping
from optwatch_agent.outside import outside, skipped
from optwatch_agent.phases import BACKWARD_BEGINS, BACKWARD_ENDS, PHASES, Phases
from optwatch_agent.rounds import Round
from optwatch_agent.signals import let_through

_FEW = 8
"""So many optimizers of one tensor each may well be of several networks."""

ONE_BY_ONE = "the parameters have optimizers of their own, which never see all gradients"
"""Why what needs them all cannot be done."""


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
        self._hooks: dict[int, list[RemovableHandle]] = {}
        """On each member, by its number."""
        self._around: list[RemovableHandle] = []
        """On the backward passes."""
        self._round = Round()
        self._left_out: dict[int, int] = {}
        """Calls of a member's that are within its step, or none of the training, and have yet to end."""
        self._listening: list[Listener] = []
        """Those that listen at the step that is under way."""
        self._deaf = False
        """Whether nothing is done at the other members' steps: it is over when the backward pass is."""
        self._deaf_time = 0.0
        """Seconds that all their calls take then."""
        self._states: States | None = None
        self._spent = 0.0

    @property
    def members(self) -> list[torch.optim.Optimizer]:
        """The optimizers that the script has not dropped."""
        return [member for reference in self._members if (member := reference()) is not None]

    @property
    def gone(self) -> bool:
        """Whether the script has dropped them all."""
        return all(reference() is None for reference in self._members)

    @property
    def numbered(self) -> list[tuple[int, torch.optim.Optimizer]]:
        """The same with the numbers that they are known by."""
        return [(i, member) for i, ref in enumerate(self._members) if (member := ref()) is not None]

    @property
    def is_late(self) -> bool:
        """Whether the step that is over was seen to be only when the next backward pass began: by then the
        parameters and generators have been used anew."""
        return self._round.late

    @property
    def is_steady(self) -> bool:
        """Whether all members have stepped in each step of late: one that does not may be late on one rank
        alone."""
        return self._round.is_steady

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> "States":  # type: ignore[override]
        if self._states is None:
            self._states = States(self.members)
        return self._states

    def has(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is a member."""
        number = self._numbers.get(id(optimizer))
        return number is not None and self._members[number]() is optimizer

    def take_spent(self) -> float:
        """Seconds that the hooks of members took since the last call, without those of the steps of all."""
        spent, self._spent = self._spent, 0.0
        return spent

    def hook(self, failed: Callable[[Exception], None]) -> None:
        """Follow the members from now on. `failed` is told of an error of ours."""
        self._failed = failed
        before, after = self._unless_deaf(self._before), self._unless_deaf(self._after)
        loaded = outside(self._loaded)
        for number, member in self.numbered:
            hooks = self._hooks[number] = [member.register_step_pre_hook(before)]
            hooks.append(member.register_step_post_hook(after))
            if hasattr(member, "_optimizer_load_state_dict_post_hooks"):
                hooks.append(member.register_load_state_dict_post_hook(loaded))
        self._around.append(handle := RemovableHandle(BACKWARD_BEGINS))
        BACKWARD_BEGINS[handle.id] = self._begins
        self._around.append(handle := RemovableHandle(BACKWARD_ENDS))
        BACKWARD_ENDS[handle.id] = self._ends
        self._deaf = True
        of_one = min(timeit.repeat(lambda: before(self, (), {}), number=20)) / 20
        self._deaf_time = 2 * len(self._members) * of_one
        self._deaf = False

    def unhook(self) -> None:
        """Follow them no more. Inside a member's step its hooks stay, and do nothing; so do all where the
        step that is under way is another thread's, which may be at any of them."""
        self._deaf = True
        for handle in self._around:
            handle.remove()
        now = self._round
        if now.under_way and now.phases is not None and now.phases.thread != threading.get_ident():
            return
        for number, member in self.numbered:
            if not is_stepping([member]):
                for handle in self._hooks.pop(number, ()):
                    handle.remove()

    def settle(self) -> None:
        """No further member steps in this round: its step is over, if none is at it."""
        with self._lock:
            now = self._round
            if now.under_way and not (now.in_backward or now.open):
                self._end()

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
            number, now = self._numbers.get(id(member)), self._round
            if number is None:  # a copy, whose hooks are those of the member
                return
            left_out = self._left_out.pop(number, 0)
            if (left_out or number in now.open) and is_nested(member):
                self._left_out[number] = left_out + 1
                return
            if kwargs and is_rehearsal(member):
                self._left_out[number] = 1
                return
            if now.open and not is_stepping([each for i, each in self.numbered if i in now.open]):
                now.forget_open()  # what they raised was caught, and the script goes on
            if now.under_way and not now.in_backward and number in now.begun:
                self._end()  # without the others, a step of its own
            if not now.under_way:
                phases = PHASES.here()
                if now.is_late_comer(number, phases):
                    return
                self._begin(number, phases)
                began = time.perf_counter()
                if self._deaf:
                    self._spent += self._deaf_time
                    return
            else:
                now.add(number)
            if self._listening:
                self._tell("before_member", self._listening, member, number)
            self._spent += time.perf_counter() - began

    def _begin(self, number: int, phases: Phases) -> None:
        """The step of all begins, with a member's."""
        self._states = None
        self._round.begin(number, phases, {number for number, _ in self.numbered})
        self._call(self._optimizer_step_pre_hooks)
        self._listening = [each for each in self.listeners if each.listens]
        self._deaf = self._round.in_backward and not self._listening and not self._round.mixed

    def _after(self, member: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with self._lock:
            began = time.perf_counter()
            number, now = self._numbers.get(id(member)), self._round
            if number is None:
                return
            if left_out := self._left_out.pop(number, 0):
                self._left_out[number] = left_out - 1
                return
            if number not in now.open:
                return
            if self._listening:
                self._tell("after_member", self._listening[::-1], member, number)
            now.open.discard(number)
            self._spent += time.perf_counter() - began
            if now.is_complete and not now.in_backward:
                self._end()

    def _begins(self, phases: Phases) -> None:
        """A backward pass begins: what was stepped behind the last one was its step."""
        with self._lock:
            now = self._round
            if now.phases is not phases:
                return
            if now.open and is_stepping([each for i, each in self.numbered if i in now.open]):
                return  # in a closure
            if now.under_way and not now.in_backward:
                now.late = True
                self._end(raised=bool(now.open))
            now.over = None

    def _ends(self, phases: Phases, raised: bool) -> None:
        """A backward pass is over."""
        with self._lock:
            now = self._round
            if now.phases is not phases or not (now.under_way and now.in_backward):
                return
            now.in_backward = False
            if raised or self._deaf or now.is_complete or not now.mixed:
                self._end(raised)

    def _end(self, raised: bool = False) -> None:
        """The step of all is over; one in which something was raised is none, as that of any optimizer."""
        now, deaf = self._round, self._deaf
        self._deaf, self._states = False, None
        try:
            if not raised and (deaf or not now.open):
                self._call(self._optimizer_step_post_hooks)
        finally:
            now.end()

    def _loaded(self, member: torch.optim.Optimizer) -> None:
        self._states = None
        if self._numbers.get(id(member)) == 0:
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


class Key(NamedTuple):
    """What a member keeps that is not of a parameter."""

    number: int
    key: Any


class States(MutableMapping[Any, Any]):
    """What the members keep of their parameters, and by `Key` of other things, as one mapping."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self._states = [member.state for member in members]
        self._of = {
            id(param): member.state
            for member in members
            for group in member.param_groups
            for param in group["params"]
        }

    def __getitem__(self, key: Any) -> Any:
        state, own = self._find(key)
        if own not in state:  # it would make one
            raise KeyError(key)
        return state[own]

    def __setitem__(self, key: Any, value: Any) -> None:
        state, own = self._find(key)
        state[own] = value

    def __delitem__(self, key: Any) -> None:
        state, own = self._find(key)
        del state[own]

    def _find(self, key: Any) -> tuple[Any, Any]:
        """Where something is kept, and by what key."""
        if isinstance(key, Key):
            return self._states[key.number], key.key
        return self._of.get(id(key), {}), key

    def __iter__(self) -> Iterator[Any]:
        for number, state in enumerate(self._states):
            yield from (key if isinstance(key, Tensor) else Key(number, key) for key in state)

    def __len__(self) -> int:
        return sum(map(len, self._states))


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
