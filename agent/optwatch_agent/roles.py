"""The one table of optimizer state: which tensor is the first moment, which the second, what restarts.

Every reader of an optimizer's state goes through here: the statistics, the restart, the hints that the
daemon gets. torch's own optimizers are known by their class (formulas of torch.optim 2.13, whose files are
named by the optimizer); those of other packages by the package and the name of the class, so that none of
them has to be imported. What no row names is read by the names that its state uses.

Slow weights: those of a Lookahead wrapper are parameters, older and so nearer to what was there before a
fault. A restart leaves them, and the next synchronisation pulls the parameters towards them as always.
Schedule-free optimizers keep such an average in the state (`z` and the weights of the average in the
group), bound up with their step count: there a restart begins the average anew at the present parameters.
"""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from optwatch.wire.limits import MAX_STEP
from optwatch_agent import updates
from optwatch_agent.factored import Factors, multiplied
from optwatch_agent.joint import kind_of
from optwatch_agent.quantised import readable
from optwatch_agent.tensors import scalar

State = Mapping[str, Any]
Group = Mapping[str, Any]
Reset = float | str


@dataclass(frozen=True)
class Roles:
    """How to read one kind of optimizer.

    `first` and `second` are keys of its per-parameter state. `root` says what the denominator makes of
    the second moment: its square root, or the value itself (Adamax). `corrected`: v̂ is the second moment
    divided by 1 - β2^step. `resets` are the values that a restart puts into the rest of the state, by
    key: a number, or the group option that holds it; `group_resets` those of the group. `copies`: keys
    that a restart sets to the parameter. `drops_first`: a first moment that does not exist is taken from
    the first gradient, undamped, which one of zeros is not. `update` computes the last update from the
    state, None where it has to be seen as a difference. `keeps_grad`: after a step the gradients are
    still those that the step was given. `refusals`: why an action cannot work, by action. `factors`: what
    stands for the second moment of tensors that have none of their own.
    """

    first: str | None = None
    second: str | None = None
    root: Literal["sqrt", "itself"] = "sqrt"
    corrected: bool = False
    resets: Mapping[str, Reset] = field(default_factory=dict)
    update: updates.Rule | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)
    group_resets: Mapping[str, Any] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    drops_first: bool = False
    keeps_grad: bool = True
    factors: Factors | None = None

    def first_moment(self, state: State) -> Tensor | None:
        return None if self.first is None else readable(state, self.first)

    def second_moment(self, state: State, group: Group) -> Tensor | None:
        whole = None if self.second is None else readable(state, self.second)
        if whole is None and self.factors is not None:
            return multiplied(self.factors, state, group)
        return whole

    def moments(self, state: State, group: Group) -> tuple[Tensor | None, Tensor | None, bool]:
        """Both moments, and whether one is no tensor of the state's but was made for this call."""
        first, second = self.first_moment(state), self.second_moment(state, group)
        made = (first is not None and first is not state.get(self.first or "")) or (
            second is not None and second is not state.get(self.second or "")
        )
        return first, second, made

    def correction(self, state: State, group: Group) -> float:
        """What the second moment is divided by to give v̂."""
        if not self.corrected:
            return 1.0
        step = steps_of(state, group)
        return 1.0 - scalar(group["betas"][1]) ** step if step > 0 else 1.0

    def epsilon(self, group: Group) -> float:
        """ε as it stands beside sqrt(v̂), 0 where the optimizer has none there."""
        if self.root == "itself" or "eps" not in group:
            return 0.0
        eps = group["eps"]
        return float(eps) if isinstance(eps, (int, float)) else 0.0


def steps_of(state: State, group: Group) -> float:
    """How many steps a parameter has behind it, by its own count or its group's; 0 where nobody counts."""
    for counts, key in ((state, "step"), (group, "step"), (group, "k")):
        if _is_number(count := counts.get(key)) and math.isfinite(number := scalar(count)):
            return number
    return 0.0


def steps_so_far(optimizer: torch.optim.Optimizer) -> int:
    """Where an optimizer's own count stands, 0 where it has none or one that nobody can have counted to."""
    counts = [steps_of(state, {}) for state in optimizer.state.values() if isinstance(state, Mapping)]
    counts += [steps_of({}, group) for group in optimizer.param_groups]
    count = int(max((count for count in counts if 0 <= count <= MAX_STEP), default=0))
    return 0 if count == 1 and not optimizer.state else count  # some begin to count at 1


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_meta and not value.is_complex()
    return isinstance(value, (int, float))


_STEP: Mapping[str, Reset] = {"step": 0}
_ADAM_RESETS: Mapping[str, Reset] = {"step": 0, "max_exp_avg_sq": 0}

TABLE: dict[type[torch.optim.Optimizer], Roles] = {
    torch.optim.SGD: Roles(first="momentum_buffer", update=updates.sgd, drops_first=True),
    torch.optim.Adam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _ADAM_RESETS, updates.adam),
    torch.optim.AdamW: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _ADAM_RESETS, updates.adamw),
    torch.optim.NAdam: Roles(
        "exp_avg", "exp_avg_sq", "sqrt", True, {"step": 0, "mu_product": 1}, updates.nadam
    ),
    torch.optim.RAdam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _STEP, updates.radam),
    torch.optim.Adamax: Roles("exp_avg", "exp_inf", "itself", False, _STEP, updates.adamax),
    torch.optim.RMSprop: Roles(
        "momentum_buffer", "square_avg", resets={"step": 0, "grad_avg": 0}, update=updates.rmsprop
    ),
    torch.optim.Adagrad: Roles(
        None, "sum", resets={"step": 0, "sum": "initial_accumulator_value"}, update=updates.adagrad
    ),
    torch.optim.Adadelta: Roles(None, "square_avg", resets={"step": 0, "acc_delta": 0}),
    torch.optim.Rprop: Roles(resets={"step": 0, "prev": 0, "step_size": "lr"}, update=updates.rprop),
    torch.optim.ASGD: Roles(
        resets={"step": 0, "eta": "lr", "mu": 1, "ax": 0},
        refusals={"restart": "ASGD's running average of the parameters would be lost"},
    ),
    torch.optim.Adafactor: Roles(
        None,
        "variance",
        resets={"step": 0, "row_var": 0, "col_var": 0},
        factors=Factors("row_var", "col_var", kept=True, least=True),
    ),
    torch.optim.SparseAdam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _STEP),
    torch.optim.LBFGS: Roles(resets={"n_iter": 0, "func_evals": 0}),
}
if muon := getattr(torch.optim, "Muon", None):  # since torch 2.9
    TABLE[muon] = Roles(first="momentum_buffer")


def _adam(second: str = "exp_avg_sq", counts: Literal["state", "group"] = "state", **more: Any) -> Roles:
    """Two moving averages and a count of steps, in the state of each parameter or in the group."""
    resets: dict[str, Reset] = {f"max_{second}": 0}
    if counts == "group":
        more["group_resets"] = {"step": 0, **more.get("group_resets", {})}
    else:
        resets["step"] = 0
    return Roles("exp_avg", second, "sqrt", True, resets, **more)


def _schedule_free(second: str | None, counter: str, **group: Any) -> Roles:
    resets = {counter: 0, "weight_sum": 0.0, "lr_max": -1.0, **group}
    return Roles(
        None, second, corrected=second is not None, group_resets=resets, copies=("z",), keeps_grad=False
    )


_FACTORS = Factors("exp_avg_sq_row", "exp_avg_sq_col")
_FACTORED: Mapping[str, Reset] = {"step": 0, "exp_avg_sq_row": 0, "exp_avg_sq_col": 0, "exp_avg_sq_hat": 0}
_NO_BUFFER = [[None, None, None] for _ in range(10)]
_EIGHT_BIT = Roles("state1", "state2", "sqrt", True, _STEP)

BY_NAME: dict[str, dict[str, Roles]] = {
    "torch_optimizer": {
        "AdaBelief": _adam("exp_avg_var", keeps_grad=False),
        "AdaBound": _adam(),
        "Adafactor": Roles("exp_avg", "exp_avg_sq", resets=_FACTORED, factors=_FACTORS),
        "LARS": Roles("momentum_buffer", drops_first=True),
        "Lamb": _adam(),
        "RAdam": _adam(group_resets={"buffer": _NO_BUFFER}),
    },
    "pytorch_optimizer": {
        "AdaBelief": _adam("exp_avg_var", "group", keeps_grad=False),
        "AdaBound": _adam(counts="group", keeps_grad=False),
        "AdaFactor": Roles(
            "exp_avg",
            "exp_avg_sq",
            resets=_FACTORED,
            group_resets=_STEP,
            keeps_grad=False,
            factors=_FACTORS,
        ),
        "LARS": Roles("momentum_buffer", group_resets=_STEP, keeps_grad=False),
        "Lamb": _adam(counts="group", keeps_grad=False),
        "Lion": Roles("exp_avg", group_resets=_STEP, keeps_grad=False),
        "RAdam": _adam(counts="group", keeps_grad=False),
        "ScheduleFreeAdamW": _schedule_free("exp_avg_sq", "step"),
        "ScheduleFreeRAdam": _schedule_free("exp_avg_sq", "step"),
        "ScheduleFreeSGD": _schedule_free(None, "step"),
    },
    "lion_pytorch": {"Lion": Roles("exp_avg")},
    "schedulefree": {
        "AdamWScheduleFree": _schedule_free("exp_avg_sq", "k", scheduled_lr=0.0),
        "RAdamScheduleFree": _schedule_free("exp_avg_sq", "k", scheduled_lr=0.0),
        "SGDScheduleFree": _schedule_free(None, "k", scheduled_lr=0.0),
    },
    "timm": {
        "AdaBelief": _adam("exp_avg_var", keeps_grad=False),
        "Adafactor": Roles("exp_avg", "exp_avg_sq", resets=_FACTORED, keeps_grad=False, factors=_FACTORS),
        "Lamb": _adam(counts="group", keeps_grad=False),
        "Lars": Roles("momentum_buffer", drops_first=True, keeps_grad=False),
        "Lion": Roles("exp_avg", keeps_grad=False),
        "RAdamLegacy": _adam(keeps_grad=False),
    },
    "torchao": {name: _adam() for name in ("Adam8bit", "Adam4bit", "AdamFp8")}
    | {name: _adam() for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8")},
    "bitsandbytes": {
        paged + name + bits: Roles("state1", resets=_STEP) if name == "Lion" else _EIGHT_BIT
        for paged in ("", "Paged")
        for name in ("Adam", "AdamW", "Lion")
        for bits in ("", "8bit", "32bit")
    },
}
"""Optimizers of other packages, by the package's name and the class's."""

_SCHEDULED = frozenset(
    {
        "params",
        "param_names",
        "lr",
        "initial_lr",
        "betas",
        "momentum",
        "weight_decay",
        "max_lr",
        "min_lr",
        "max_momentum",
        "base_momentum",
    }
)
"""What a group holds that is no state of the optimizer, of one that is not in the table of roles."""

_FIRST_KEYS = ("exp_avg", "momentum_buffer", "m", "grad_ma", "momentum", "state1")
_SECOND_KEYS = ("exp_avg_sq", "exp_avg_var", "square_avg", "v", "hessian", "state2")


def roles_of(optimizer: torch.optim.Optimizer) -> Roles:
    """The roles of an optimizer's state: from the table, else by the names that its state uses.

    A subclass of an optimizer in the table is read as that one; if it has a `step` of its own, its update
    is not taken for known. An optimizer that is not in the table gets no update rule, and a restart is
    refused: what is left in the state beside the moments, and what the optimizer makes of it, is not known.
    """
    kind = kind_of(optimizer)
    keys = next((state.keys() for state in optimizer.state.values() if isinstance(state, Mapping)), ())
    for base in kind.__mro__:
        if (roles := _row(base)) is not None:
            return roles if _steps_alike(kind, base) else _of_subclass(roles, kind, base, keys)
    return Roles(
        first=next((key for key in _FIRST_KEYS if key in keys), None),
        second=next((key for key in _SECOND_KEYS if key in keys), None),
        refusals={"restart": f"the state of {kind.__name__} is not known well enough to clear"},
        keeps_grad=False,
    )


def counters_of(optimizer: torch.optim.Optimizer, group: Group) -> list[str]:
    """The keys of what an optimizer counts in a group, as far as it is told from what a schedule sets."""
    if is_known(optimizer):
        return [key for key in roles_of(optimizer).group_resets if key in group]
    return [key for key in group if key not in _SCHEDULED]


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    return any(_row(base) is not None for base in kind_of(optimizer).__mro__)


def fresh(value: Any) -> Any:
    """A value of `group_resets` that nobody else holds."""
    return copy.deepcopy(value)


def _row(kind: type) -> Roles | None:
    roles = TABLE.get(kind)
    return roles or BY_NAME.get(kind.__module__.partition(".")[0], {}).get(kind.__name__)


def _of_subclass(roles: Roles, kind: type, base: type, keys: Iterable[str]) -> Roles:
    """The roles of a class with a `step` of its own: what it does with the gradient is not known."""
    known = {roles.first, roles.second, *roles.resets, *roles.copies}
    refusals = dict(roles.refusals)
    if more := [key for key in keys if key not in known]:
        refusals["restart"] = f"{kind.__name__} adds {more[0]} to the state of {base.__name__}"
    return replace(roles, update=None, refusals=refusals)


def _steps_alike(kind: Any, base: Any) -> bool:
    """Whether a class takes its steps as a base of it does, under the wrappers that torch puts on."""
    return kind is base or inspect.unwrap(kind.step) is inspect.unwrap(base.step)
