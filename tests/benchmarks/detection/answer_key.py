"""The answer key of the fault-injection benchmark: which findings and which cause are right for a fault.

Laid down before anything was measured by it. A finding is right if its kind is among a fault's `kinds`
and it was reported at or after the injection; its first cause is right if it is among `causes`.
"""

from dataclasses import dataclass

from optwatch.wire.findings import CauseName, Kind

EXCURSION: tuple[Kind, ...] = (
    "divergence",
    "loss_spike",
    "slow_divergence",
    "exploding_gradient",
    "non_finite",
    "oscillation",
)


@dataclass(frozen=True)
class Answer:
    """`floor` is the share that has to be found, None where it is only reported. `diverges`: of the kinds
    of which 98 % have to be found."""

    kinds: tuple[Kind, ...]
    causes: tuple[CauseName, ...]
    floor: float | None = 0.90
    diverges: bool = False


FAULTS: dict[str, Answer] = {
    "lr_too_high": Answer(
        (*EXCURSION, "plateau", "dead_parameters"), ("lr_too_high", "lr_schedule"), 0.98, diverges=True
    ),
    "lr_jump": Answer((*EXCURSION, "plateau", "dead_parameters"), ("lr_too_high", "lr_schedule"), 0.98, True),
    "lr_too_low": Answer(("plateau",), ("lr_too_low", "lr_schedule"), None),
    "gradient_spike": Answer(EXCURSION, ("bad_batch", "stale_moments", "no_clipping"), 0.98, True),
    "recurring_spikes": Answer(EXCURSION, ("bad_batch", "stale_moments", "no_clipping"), 0.98, True),
    "bad_batches": Answer(EXCURSION, ("bad_batch", "data_order", "data_shift", "no_clipping"), 0.98, True),
    "stale_second_moment": Answer(
        ("stale_second_moment", "plateau", *EXCURSION), ("stale_moments", "bad_batch", "betas", "lr_too_low")
    ),
    "low_beta2": Answer((*EXCURSION, "plateau", "misconfigured_optimizer"), ("betas",), None),
    "large_epsilon": Answer(("epsilon_dominated", "plateau", "misconfigured_optimizer"), ("epsilon",)),
    "deep_sigmoid": Answer(
        ("vanishing_gradient", "plateau"), ("saturated_activations", "architecture", "bad_init")
    ),
    "deep_rnn": Answer(
        (*EXCURSION, "plateau"),
        ("no_clipping", "lr_too_high", "bad_init", "architecture", "unscaled_inputs"),
        0.98,
        True,
    ),
    "dead_relu": Answer(("dead_parameters", "plateau"), ("dead_units", "bad_init", "lr_too_high")),
    "unscaled_inputs": Answer(
        (*EXCURSION, "plateau", "dead_parameters"), ("unscaled_inputs", "lr_too_high"), 0.90
    ),
    "noisy_labels": Answer(("overfitting", "plateau"), ("noisy_labels", "finished"), None),
    "nan": Answer(("non_finite",), ("bad_batch", "hardware_fault", "fp16_overflow"), 0.98, True),
    "batch_of_2": Answer((*EXCURSION, "plateau"), ("batch_too_small", "lr_too_high"), None),
    "stuck_init": Answer(
        ("plateau", "vanishing_gradient", "dead_parameters"), ("bad_init", "dead_units", "flat_landscape")
    ),
}

CONTROLS: tuple[str, ...] = (
    "plain",
    "late_starter",
    "warm_restart",
    "mixup",
    "converged",
    "curriculum_marked",
    "curriculum",
    "rising_gradient_norm",
    "amp_overflow",
    "data_outliers",
    "batch_size_change",
)
"""Healthy runs: an alarm (warning or critical) in one of them is false."""

HARM = 1.1
"""A fault counts where the final held-out loss is over this times that of its healthy twin."""
