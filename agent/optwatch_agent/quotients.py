"""The updates that are one quotient, element by element: the form that the fast paths compute.

`updates` states every rule as tensor operations; the two are tested against each other. Numbers may be
tensors of many parameters at once: then those of the form are, too.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.updates import Rule, adagrad, adam, adamax, adamw, nadam, radam, rmsprop, sgd

TINY = 1e-37
"""Least sqrt(v̂) that is divided by: not 0, in float32 too."""


class Form(NamedTuple):
    """An update of the form (of_grad · g + of_first · m + inside · p) / (of_root · r + epsilon + inside) +
    of_param · p, p being the parameter after the step and r the root of a second moment."""

    of_grad: Any = 0.0
    of_first: Any = 0.0
    inside: Any = 0.0
    of_root: Any = 0.0
    epsilon: Any = 1.0
    of_param: Any = 0.0


def form(rule: Rule, numbers: Mapping[str, Any], has_first: bool) -> Form:
    """The update by its rule, one of `FORMS`.

    Raises:
        ArithmeticError: what it would take to say so is gone, as with a decay that leaves nothing.
    """
    return FORMS[rule](numbers, has_first)


def _sgd(n: Mapping[str, Any], has_first: bool) -> Form:
    lr = n["lr"]
    b = -lr * n["weight_decay"]
    if not has_first:
        return Form(of_grad=-lr * n["sign"] / (1 + b), of_param=b / (1 + b))
    if n["nesterov"]:
        return Form(-lr * n["sign"] / (1 + b), -lr * n["momentum"] / (1 + b), of_param=b / (1 + b))
    return Form(of_first=-lr)


def _adam(n: Mapping[str, Any], has_first: bool) -> Form:
    b = _decay(n)
    of_first = -n["lr"] / (1 - n["beta1"] ** n["step"]) / (1 + b)
    return Form(0.0, of_first, 0.0, (1 - n["beta2"] ** n["step"]) ** -0.5, n["eps"], b / (1 + b))


def _nadam(n: Mapping[str, Any], has_first: bool) -> Form:
    b, lr, step = _decay(n), n["lr"], n["step"]
    mu = n["beta1"] * (1 - 0.5 * 0.96 ** (step * n["momentum_decay"]))
    mu_next = n["beta1"] * (1 - 0.5 * 0.96 ** ((step + 1) * n["momentum_decay"]))
    of_grad = -lr * (1 - mu) / (1 - n["mu_product"])
    of_first = -lr * mu_next / (1 - n["mu_product"] * mu_next)
    of_root = (1 - n["beta2"] ** step) ** -0.5
    inside = 0.0 if n["decoupled"] else of_grad * n["weight_decay"]
    return Form(of_grad * n["sign"] / (1 + b), of_first / (1 + b), inside, of_root, n["eps"], b / (1 + b))


def _radam(n: Mapping[str, Any], has_first: bool) -> Form:
    b, step, beta2 = _decay(n), n["step"], n["beta2"]
    correction = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * step * beta2**step / correction
    of_first = -n["lr"] / (1 - n["beta1"] ** step) / (1 + b)
    # The rectified update divides by the root, the other one by 1, and has no square.
    on = rho > 5
    factor: Any = 1.0
    if isinstance(on, Tensor) or on:
        square = (rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho) * correction
        factor = torch.where(on, square.abs().sqrt(), 1.0) if isinstance(on, Tensor) else math.sqrt(square)
    root = on.double() if isinstance(on, Tensor) else float(on)
    return Form(0.0, of_first * factor, 0.0, root, root * n["eps"] + (1 - root), b / (1 + b))


def _adamax(n: Mapping[str, Any], has_first: bool) -> Form:
    return Form(0.0, -n["lr"] / (1 - n["beta1"] ** n["step"]), 0.0, 1.0, 0.0)


def _rmsprop(n: Mapping[str, Any], has_first: bool) -> Form:
    if has_first:
        return Form(of_first=-n["lr"])
    return Form(-n["lr"] * n["sign"], 0.0, -n["lr"] * n["weight_decay"], 1.0, n["eps"])


def _adagrad(n: Mapping[str, Any], has_first: bool) -> Form:
    lr = n["lr"] / (1 + (n["step"] - 1) * n["lr_decay"])
    return Form(-lr * n["sign"], 0.0, -lr * n["weight_decay"], 1.0, n["eps"])


def _decay(n: Mapping[str, Any]) -> Any:
    """What a decay that is taken off beside the update multiplies the parameter by before the step."""
    return -n["lr"] * n["weight_decay"] if n["decoupled"] else 0.0


FORMS: dict[Rule, Callable[[Mapping[str, Any], bool], Form]] = {
    sgd: _sgd,
    adam: _adam,
    adamw: _adam,
    nadam: _nadam,
    radam: _radam,
    adamax: _adamax,
    rmsprop: _rmsprop,
    adagrad: _adagrad,
}
"""The rules that have this form. They follow `updates`, where p_new = p_old + a + b · p_old."""


class Quotient(NamedTuple):
    """An update of the form (of_grad · g + of_first · m) / (sqrt(v̂) + epsilon) + of_param · p, p being the
    parameter after the step; without a second moment the denominator is 1."""

    of_grad: float
    of_first: float
    of_param: float
    epsilon: float


def quotient(
    rule: Rule | None, numbers: Mapping[str, float], has_first: bool, has_second: bool
) -> Quotient | None:
    """The update as a quotient, None where its rule has another form (`updates` has them all)."""
    if not numbers or rule not in (adam, adamw, sgd):
        return None
    if rule is not sgd and not (has_first and has_second):
        return None
    try:
        found = form(rule, numbers, has_first)
    except ArithmeticError:
        return None
    epsilon = 0.0 if rule is sgd else found.epsilon
    return Quotient(found.of_grad, found.of_first, found.of_param, epsilon)
