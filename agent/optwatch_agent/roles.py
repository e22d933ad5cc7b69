"""The one table of optimizer state: which tensor is the first moment, which the second, what restarts.

Every reader of an optimizer's state goes through here: the statistics, the restart, the hints that the
daemon gets. Formulas are those of torch.optim 2.13, whose files are named by the optimizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from optwatch_agent import updates
from optwatch_agent.tensors import scalar

State = Mapping[str, Any]
Group = Mapping[str, Any]


@dataclass(frozen=True)
class Roles:
    """How to read one kind of optimizer.

    `first` and `second` are keys of its per-parameter state. `root` says what the denominator makes of
    the second moment: its square root, or the value itself (Adamax). `corrected`: the second moment is
    divided by 1 - β2^step. `resets` are the values that a restart puts into the rest of the state, by
    key: a number, or the group option that holds it. `update` computes the last update from the state,
    None where it has to be seen as a difference. `refusals`: why an action cannot work, by action.
    """

    first: str | None = None
    second: str | None = None
    root: Literal["sqrt", "itself"] = "sqrt"
    corrected: bool = False
    resets: Mapping[str, float | str] = field(default_factory=dict)
    update: updates.Rule | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)

    def first_moment(self, state: State) -> Tensor | None:
        return _tensor(state, self.first)

    def second_moment(self, state: State) -> Tensor | None:
        return _tensor(state, self.second)

    def correction(self, state: State, group: Group) -> float:
        """What the second moment is divided by to give v̂."""
        if not self.corrected:
            return 1.0
        step = scalar(state.get("step", group.get("step", 0)))
        return 1.0 - float(group["betas"][1]) ** step if step > 0 else 1.0

    def epsilon(self, group: Group) -> float:
        """ε as it stands beside sqrt(v̂), 0 where the optimizer has none there."""
        if self.root == "itself" or "eps" not in group:
            return 0.0
        eps = group["eps"]
        return float(eps) if isinstance(eps, (int, float)) else 0.0


_ADAM_RESETS: Mapping[str, float | str] = {"step": 0, "max_exp_avg_sq": 0}

TABLE: Mapping[type[torch.optim.Optimizer], Roles] = {
    torch.optim.SGD: Roles(first="momentum_buffer", update=updates.sgd),
    torch.optim.Adam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _ADAM_RESETS, updates.adam),
    torch.optim.AdamW: Roles("exp_avg", "exp_avg_sq", "sqrt", True, _ADAM_RESETS, updates.adamw),
    torch.optim.NAdam: Roles(
        "exp_avg", "exp_avg_sq", "sqrt", True, {"step": 0, "mu_product": 1}, updates.nadam
    ),
    torch.optim.RAdam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, {"step": 0}, updates.radam),
    torch.optim.Adamax: Roles("exp_avg", "exp_inf", "itself", False, {"step": 0}, updates.adamax),
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
    torch.optim.Adafactor: Roles(None, "variance", resets={"step": 0, "row_var": 0, "col_var": 0}),
    torch.optim.SparseAdam: Roles("exp_avg", "exp_avg_sq", "sqrt", True, {"step": 0}),
    torch.optim.LBFGS: Roles(resets={"n_iter": 0, "func_evals": 0}),
}
if muon := getattr(torch.optim, "Muon", None):  # since torch 2.9
    TABLE = {**TABLE, muon: Roles(first="momentum_buffer")}

_FIRST_KEYS = ("exp_avg", "momentum_buffer", "m", "grad_ma", "momentum")
_SECOND_KEYS = ("exp_avg_sq", "exp_avg_var", "square_avg", "v", "hessian")


def roles_of(optimizer: torch.optim.Optimizer) -> Roles:
    """The roles of an optimizer's state: from the table, else by the names that its state uses.

    An optimizer that is not in the table gets no update rule, and a restart is refused: what is left in
    the state beside the moments, and what the optimizer makes of it, is not known.
    """
    if (roles := TABLE.get(type(optimizer))) is not None:
        return roles
    keys = next((state.keys() for state in optimizer.state.values() if isinstance(state, Mapping)), ())
    return Roles(
        first=next((key for key in _FIRST_KEYS if key in keys), None),
        second=next((key for key in _SECOND_KEYS if key in keys), None),
        refusals={"restart": f"the state of {type(optimizer).__name__} is not known well enough to clear"},
    )


def is_known(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) in TABLE


def _tensor(state: State, key: str | None) -> Tensor | None:
    value = state.get(key) if key is not None else None
    return value if isinstance(value, Tensor) and value.numel() > 0 else None
