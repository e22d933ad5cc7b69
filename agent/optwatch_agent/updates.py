"""The last update of a parameter, computed from the optimizer's state after the step.

A rule returns (a, b) with update = a + b · p_old, element by element; b is 0 where the update does not
depend on the parameter other than through the state. Since p_new = p_old + a + b · p_old, the caller
needs no copy of the old parameters. All formulas follow torch.optim 2.13 (the file of the same name).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optwatch_agent.tensors import number


class Slices(NamedTuple):
    """Equal flat slices of one parameter's tensors after the step, of one floating dtype.

    `root` is sqrt(v̂) where there is a second moment; `extra` holds the other state tensors that the rule
    asks for in `Rule.extra`. A rule writes to none of them.
    """

    grad: Tensor
    first: Tensor | None
    second: Tensor | None
    root: Tensor | None
    extra: Mapping[str, Tensor]


class Rule(NamedTuple):
    """`needs`: state keys without which there is no update to compute. `extra`: state keys beyond the two
    moments. `scalars`: numbers of one parameter, read once; tensors where they are on a device, or of many
    parameters."""

    compute: Callable[[Slices, Mapping[str, float]], tuple[Tensor, Tensor | float]]
    scalars: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    needs: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


def _options(
    *names: str, decoupled: bool = False
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    def read(state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {name: number(0 if (value := group.get(name)) is None else value) for name in names}
        numbers["sign"] = -1.0 if group.get("maximize") else 1.0
        numbers["decoupled"] = float(decoupled or bool(group.get("decoupled_weight_decay")))
        for key in ("step", "mu_product"):
            if key in state:
                numbers[key] = number(state[key])
        if "betas" in group:
            numbers["beta1"], numbers["beta2"] = (number(beta) for beta in group["betas"])
        return numbers

    return read


def _sgd(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    lr, decay = n["lr"], n["weight_decay"]
    if x.first is None:
        return x.grad * (-lr * n["sign"]), -lr * decay
    if not n["nesterov"]:
        return x.first * -lr, 0.0
    return (x.grad * n["sign"]).add_(x.first, alpha=n["momentum"]).mul_(-lr), -lr * decay


def _adam(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    assert x.first is not None
    assert x.root is not None
    if (highest := x.extra.get("max_exp_avg_sq")) is not None:
        denominator = highest.sqrt().div_((1 - n["beta2"] ** n["step"]) ** 0.5).add_(n["eps"])
    else:
        denominator = x.root + n["eps"]
    a = torch.div(x.first, denominator, out=denominator).mul_(-n["lr"] / (1 - n["beta1"] ** n["step"]))
    return _decoupled(a, n)


def _nadam(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    assert x.first is not None
    assert x.root is not None
    lr, step = n["lr"], n["step"]
    mu = n["beta1"] * (1 - 0.5 * 0.96 ** (step * n["momentum_decay"]))
    mu_next = n["beta1"] * (1 - 0.5 * 0.96 ** ((step + 1) * n["momentum_decay"]))
    of_grad = -lr * (1 - mu) / (1 - n["mu_product"])
    of_first = -lr * mu_next / (1 - n["mu_product"] * mu_next)
    denominator = x.root + n["eps"]
    a = (x.grad * (of_grad * n["sign"])).add_(x.first, alpha=of_first).div_(denominator)
    if n["decoupled"]:
        return _decoupled(a, n)
    decay = n["weight_decay"]
    return a, denominator.reciprocal_().mul_(of_grad * decay) if decay else 0.0


def _radam(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    assert x.first is not None
    assert x.second is not None
    step, beta2 = n["step"], n["beta2"]
    correction = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / correction
    a = x.first * (-n["lr"] / (1 - n["beta1"] ** step))
    if rho > 5:
        rectified = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        a.div_(x.second.sqrt().add_(n["eps"])).mul_(correction**0.5 * rectified)
    return _decoupled(a, n)


def _adamax(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    assert x.first is not None
    assert x.second is not None
    return (x.first / x.second).mul_(-n["lr"] / (1 - n["beta1"] ** n["step"])), 0.0


def _rmsprop(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    lr, decay = n["lr"], n["weight_decay"]
    if x.first is not None:
        return x.first * -lr, 0.0
    assert x.second is not None
    mean = x.extra.get("grad_avg")
    centred = x.second.addcmul(mean, mean, value=-1) if mean is not None else x.second.clone()
    denominator = centred.sqrt_().add_(n["eps"])
    a = (x.grad / denominator).mul_(-lr * n["sign"])
    return a, denominator.reciprocal_().mul_(-lr * decay) if decay else 0.0


def _adagrad(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    assert x.root is not None
    lr, decay = n["lr"] / (1 + (n["step"] - 1) * n["lr_decay"]), n["weight_decay"]
    denominator = x.root + n["eps"]
    a = (x.grad / denominator).mul_(-lr * n["sign"])
    return a, denominator.reciprocal_().mul_(-lr * decay) if decay else 0.0


def _rprop(x: Slices, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    return (x.extra["prev"].sign() * x.extra["step_size"]).neg_(), 0.0


def _decoupled(a: Tensor, n: Mapping[str, float]) -> tuple[Tensor, Tensor | float]:
    """Add the decay that shrinks the parameter before the update is taken from it."""
    return (a, -n["lr"] * n["weight_decay"]) if n["decoupled"] else (a, 0.0)


_MOMENTS = ("exp_avg", "exp_avg_sq")

sgd = Rule(_sgd, _options("lr", "weight_decay", "momentum", "nesterov"))
adam = Rule(_adam, _options("lr", "weight_decay", "eps"), _MOMENTS, ("max_exp_avg_sq",))
adamw = Rule(_adam, _options("lr", "weight_decay", "eps", decoupled=True), _MOMENTS, ("max_exp_avg_sq",))
nadam = Rule(_nadam, _options("lr", "weight_decay", "eps", "momentum_decay"), _MOMENTS)
radam = Rule(_radam, _options("lr", "weight_decay", "eps"), _MOMENTS)
adamax = Rule(_adamax, _options("lr", "eps"), ("exp_avg", "exp_inf"))
rmsprop = Rule(_rmsprop, _options("lr", "weight_decay", "eps"), ("square_avg",), ("grad_avg",))
adagrad = Rule(_adagrad, _options("lr", "weight_decay", "eps", "lr_decay"), ("sum",))
rprop = Rule(_rprop, _options("lr"), ("prev", "step_size"), ("prev", "step_size"))
