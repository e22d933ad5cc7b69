"""The updates that are one quotient, element by element: the form that the fast paths compute.

`updates` states every rule as tensor operations; the two are tested against each other.
"""

from typing import NamedTuple

from optwatch_agent.pieces import Piece
from optwatch_agent.updates import Rule, adam, adamw, sgd


class Quotient(NamedTuple):
    """An update of the form (of_grad · g + of_first · m) / (sqrt(v̂) + epsilon) + of_param · p, p being the
    parameter after the step; without a second moment the denominator is 1."""

    of_grad: float
    of_first: float
    of_param: float
    epsilon: float


def quotient(rule: Rule | None, x: Piece) -> Quotient | None:
    """The update of `x` as a quotient, None where its rule has another form (`updates` has them all)."""
    n = x.numbers
    if not n or rule is None or x.extra:
        return None
    lr = n["lr"]
    if rule is adam or rule is adamw:
        if x.first is None or x.second is None:
            return None
        b = -lr * n["weight_decay"] if n["decoupled"] else 0.0
        return Quotient(0.0, -lr / (1 - n["beta1"] ** n["step"]) / (1 + b), b / (1 + b), n["eps"])
    if rule is sgd:
        b = -lr * n["weight_decay"]
        if x.first is None:
            return Quotient(-lr * n["sign"] / (1 + b), 0.0, b / (1 + b), 0.0)
        if n["nesterov"]:
            return Quotient(-lr * n["sign"] / (1 + b), -lr * n["momentum"] / (1 + b), b / (1 + b), 0.0)
        return Quotient(0.0, -lr, 0.0, 0.0)
    return None
