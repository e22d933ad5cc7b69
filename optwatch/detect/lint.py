"""Set-up lint: what is unusual about an optimizer before its first step. Hints, never alarms."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from optwatch.detect.base import Signal
from optwatch.wire.findings import Cause, CauseName, Remedy
from optwatch.wire.messages import ConfigValue, GroupInfo, OptimizerInfo

USUAL_LR: dict[str, tuple[float, float]] = {
    "SGD": (0.01, 0.3),
    "Adam": (1e-5, 3e-3),
    "AdamW": (1e-5, 3e-3),
    "NAdam": (1e-5, 3e-3),
    "RAdam": (1e-5, 3e-3),
    "Adamax": (1e-5, 6e-3),
    "AMSGrad": (1e-5, 3e-3),
    "RMSprop": (1e-5, 3e-3),
    "Adagrad": (1e-3, 0.1),
    "Lion": (1e-6, 1e-3),
    "LAMB": (1e-4, 2e-2),
}
"""Learning rates that a kind of optimizer is used with. Adamax: twice those of Adam, as its paper has it."""
ADVERSARIAL_LR = (1e-4, 3e-4)
"""What Adam and its kin are used with in GANs and reinforcement learning, where several optimizers train."""

SMALLEST_HALF = 2.0**-24
"""The least positive float16."""

COUPLED = frozenset({"Adam", "NAdam", "RAdam", "Adamax"})
"""Kinds whose weight decay is added to the gradient, and so scaled by the second moment."""


def lint(optimizers: Sequence[OptimizerInfo]) -> list[Signal]:
    """One hint for each thing that is unusual, with what to do about it."""
    several = len(optimizers) > 1
    return [
        hint
        for optimizer in optimizers
        for hint in (
            *_missing(optimizer),
            *_once(
                hint
                for number, group in enumerate(optimizer.groups)
                for hint in _group(optimizer, number, group, several)
            ),
        )
    ]


def _once(hints: Iterable[Signal]) -> Iterator[Signal]:
    """Of what several groups of an optimizer have in common one hint, of the first: there may be a group for
    each parameter."""
    alike: dict[tuple[object, ...], list[Signal]] = {}
    for hint in hints:
        what = *(cause.cause for cause in hint.causes), *(remedy.why for remedy in hint.remedies)
        alike.setdefault(what, []).append(hint)
    for first, *others in alike.values():
        more = f" (and {len(others):,} more group{'s' * (len(others) > 1)})" if others else ""
        yield replace(first, summary=first.summary + more)


def betas(options: Mapping[str, ConfigValue]) -> tuple[float, float] | None:
    """The decay rates of the moments, however they were written down."""
    pair = [_number(options, name) for name in ("beta1", "beta2")]
    if None in pair:
        pair = [
            float(text)
            for text in re.findall(r"\d*\.?\d+(?:[eE][-+]?\d+)?", str(options.get("betas", "")))[:2]
        ]
    if len(pair) != 2 or pair[0] is None or pair[1] is None:
        return None
    return pair[0], pair[1]


def _hint(
    optimizer: OptimizerInfo, number: int, what: str, cause: CauseName, advice: str, **evidence: float | str
) -> Signal:
    return Signal(
        kind="misconfigured_optimizer",
        step=0,
        onset_step=0,
        severity="info",
        key=f"{optimizer.name}/{number}/{cause}",
        group=number,
        summary=f"{optimizer.name}, group {number}: {what}",
        evidence=evidence,
        causes=(Cause(cause, 1.0, what),),
        remedies=(Remedy("advice", {}, advice),),
    )


def _missing(optimizer: OptimizerInfo) -> Iterator[Signal]:
    """Parameters of the model that want a gradient and are in no optimizer."""
    if optimizer.missing:
        names = ", ".join(optimizer.missing)
        what = f"in no optimizer that is watched, although they want a gradient: {names}"
        advice = "give them to the optimizer, or set requires_grad to False"
        signal = _hint(optimizer, 0, what, "architecture", advice, parameters=names)
        yield replace(signal, tensor=optimizer.missing[0], group=None)


def _group(optimizer: OptimizerInfo, number: int, group: GroupInfo, several: bool) -> list[Signal]:
    kind, options, hints = optimizer.kind, group.options, list[Signal]()

    def hint(what: str, cause: CauseName, advice: str, **evidence: float | str) -> None:
        hints.append(_hint(optimizer, number, what, cause, advice, **evidence))

    if group.twice:
        hint(
            f"{group.twice} of its parameters are listed twice: such a one is updated twice a step",
            "wrong_optimizer",
            "list each parameter once",
            twice=group.twice,
        )
    decay = _number(options, "weight_decay")
    if kind in COUPLED and decay and not options.get("decoupled_weight_decay"):
        hint(
            f"{kind} with weight_decay {decay:g} adds the decay to the gradient,"
            " where the second moment scales it away",
            "weight_decay",
            "use AdamW, or decoupled_weight_decay=True where the optimizer has it",
            weight_decay=decay,
        )
    pair = betas(options)
    if pair is not None:
        first, second = pair
        if second < 0.9:
            hint(
                f"β2 = {second:g} averages the squared gradient over only"
                f" {1 / max(1 - second, 1e-9):.0f} steps",
                "betas",
                "raise β2: 0.999 is usual, 0.95-0.99 for large language models",
                beta2=second,
            )
        elif first * first > second:
            hint(
                f"β1² = {first * first:.4g} is above β2 = {second:g}: updates can grow without bound",
                "betas",
                "lower β1 or raise β2 until β1² ≤ β2",
                beta1=first,
                beta2=second,
            )
    epsilon = _number(options, "eps")
    if epsilon is not None and pair is not None and epsilon > 1e-4:
        hint(
            f"ε = {epsilon:g} rivals sqrt(v̂) of small gradients and turns the update into plain momentum",
            "epsilon",
            "use ε = 1e-8 (1e-6 to 1e-5 in half precision)",
            epsilon=epsilon,
        )
    if epsilon is not None and group.half and epsilon < SMALLEST_HALF:
        hint(
            f"ε = {epsilon:g} is zero in float16, in which some of its parameters are",
            "epsilon",
            "use ε = 1e-6 to 1e-5 in half precision, or keep the optimizer's parameters in float32",
            epsilon=epsilon,
        )
    rate = _number(options, "initial_lr") or _number(options, "lr")
    if rate and kind in USUAL_LR:
        low, high = USUAL_LR[kind]
        least, most = ADVERSARIAL_LR
        adversarial = f" ({least:g} to {most:g} in a GAN or in reinforcement learning)" if several else ""
        if rate > high:
            hint(
                f"an LR of {rate:g} is above what {kind} is usually used with ({low:g} to {high:g})",
                "lr_too_high",
                f"start from an LR of at most {high:g}, with a warm-up{adversarial}",
                lr=rate,
                usual=high,
            )
        elif rate < low:
            hint(
                f"an LR of {rate:g} is below what {kind} is usually used with ({low:g} to {high:g})",
                "lr_too_low",
                f"start from an LR of at least {low:g}",
                lr=rate,
                usual=low,
            )
    return hints


def _number(options: Mapping[str, ConfigValue], name: str) -> float | None:
    value = options.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
