"""What detectors say: findings, their causes and the remedies they suggest."""

from typing import Literal, get_args

import msgspec

Severity = Literal["watch", "info", "warning", "critical"]

Kind = Literal[
    "non_finite",
    "divergence",
    "loss_spike",
    "slow_divergence",
    "exploding_gradient",
    "plateau",
    "converged",
    "vanishing_gradient",
    "dead_parameters",
    "epsilon_dominated",
    "stale_second_moment",
    "oscillation",
    "overfitting",
    "clip_saturated",
    "loss_scale_collapse",
    "misconfigured_optimizer",
    "replica_desync",
    "straggler",
    "stalled_rank",
]

CauseName = Literal[
    "lr_too_high",
    "lr_too_low",
    "lr_schedule",
    "betas",
    "bad_batch",
    "data_order",
    "unscaled_inputs",
    "noisy_labels",
    "batch_too_small",
    "bad_init",
    "saturated_activations",
    "dead_units",
    "no_clipping",
    "stale_moments",
    "epsilon",
    "weight_decay",
    "fp16_overflow",
    "hardware_fault",
    "data_shift",
    "wrong_optimizer",
    "flat_landscape",
    "architecture",
    "finished",
]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
KINDS: tuple[Kind, ...] = get_args(Kind)
CAUSES: tuple[CauseName, ...] = get_args(CauseName)

ALARMS: frozenset[Severity] = frozenset({"warning", "critical"})
"""Severities that call a person. `watch` and `info` are shown quietly and never acted on."""


class Cause(msgspec.Struct, frozen=True):
    """A likely cause. `weight` is its share of the belief, in [0, 1]; `because` quotes the numbers."""

    cause: CauseName
    weight: float
    because: str


class Remedy(msgspec.Struct, frozen=True):
    """Something to do. `action` is one of `actions.ACTIONS`, or "advice" for a change in the script."""

    action: str
    args: dict[str, float | int | str | bool]
    why: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that goes wrong, from its onset until it is over.

    `step` is the global_step at which it was reported, `onset_step` the one at which it began,
    `resolved_step` the one at which it was over, or None. `id` is unique within the run.
    """

    run: str
    id: int
    kind: Kind
    severity: Severity
    step: int
    onset_step: int
    summary: str
    rank: int | None = None
    tensor: str | None = None
    group: int | None = None
    evidence: dict[str, float | int | str] = {}
    causes: tuple[Cause, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    resolved_step: int | None = None
