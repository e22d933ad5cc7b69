"""What to do about a cause: actions that a daemon can apply, and advice for the script."""

from optwatch.detect.base import Signal
from optwatch.detect.evidence import Evidence
from optwatch.wire.findings import Cause, CauseName, Kind, Remedy

EXCURSIONS: frozenset[Kind] = frozenset(
    {"divergence", "loss_spike", "exploding_gradient", "slow_divergence", "non_finite", "oscillation"}
)
KEPT = 4

ADVICE: dict[CauseName, str] = {
    "lr_too_high": "start from a lower LR, with a linear warm-up over the first few hundred steps",
    "lr_too_low": "raise the LR: a sweep over factors of 3 finds the height at which it still converges",
    "lr_schedule": "check the schedule: a warm-up at the start (RAdam does without one), a slow decay"
    " (cosine, linear) to the end",
    "betas": "raise β2: 0.999 is usual, 0.95-0.99 for large language models",
    "bad_batch": "look at the data of these steps; skip non-finite or outlying batches",
    "data_order": "shuffle the data anew in each epoch",
    "unscaled_inputs": "scale the inputs to zero mean and unit variance",
    "noisy_labels": "check the labels; smooth them, or weigh down samples of high loss",
    "batch_too_small": "use a larger batch, or accumulate gradients over several",
    "bad_init": "initialise by He (ReLU) or Glorot (tanh, sigmoid), never with zeros or large biases",
    "saturated_activations": "use ReLU or GELU in place of sigmoid or tanh, and normalise between the layers",
    "dead_units": "use a leaky ReLU or GELU, a lower LR or smaller biases",
    "no_clipping": "clip gradients: torch.nn.utils.clip_grad_norm_(parameters, 1.0)",
    "stale_moments": "lower β2 (0.95) or clip, so that one gradient does not rule the second moment",
    "epsilon": "lower ε: 1e-8 is usual, 1e-6 to 1e-5 in half precision",
    "weight_decay": "raise the weight decay (decoupled: AdamW), or regularise otherwise",
    "fp16_overflow": "train in bfloat16, or keep the layer that overflows in float32",
    "hardware_fault": "run the same steps on another device, and compare",
    "data_shift": "mark planned changes of the data: watch.mark(…); otherwise check what the loader gives",
    "wrong_optimizer": "try another optimizer: AdamW for transformers and in place of Adagrad, whose step"
    " only shrinks; SGD with momentum late in vision; LAMB for batches of thousands",
    "flat_landscape": "try an adaptive optimizer (AdamW), a higher LR for a while, or normalisation layers",
    "architecture": "add residual connections or normalisation layers, or make the net shallower",
    "finished": "stop here, or go on from the best checkpoint with a lower LR",
}


def remedies_for(signal: Signal, causes: tuple[Cause, ...], evidence: Evidence) -> tuple[Remedy, ...]:
    """What to do about a signal, in the order of its causes; an action is named once."""
    if signal.remedies:
        return signal.remedies
    if signal.kind == "converged":
        return (Remedy("advice", {}, ADVICE["finished"]),)
    remedies: list[Remedy] = []
    if signal.kind in EXCURSIONS:
        _, rise = evidence.rate_rise(signal.onset_step, signal.step)
        for cause in causes[:2]:
            remedies += _actions(cause, rise > 1.5, evidence)
    remedies += [Remedy("advice", {}, ADVICE[cause.cause]) for cause in causes[:2]]
    unique = {
        (remedy.action, remedy.why if remedy.action == "advice" else ""): remedy
        for remedy in reversed(remedies)
    }
    return tuple(sorted(unique.values(), key=remedies.index)[:KEPT])


def _actions(cause: Cause, raised: bool, evidence: Evidence) -> list[Remedy]:
    restart = Remedy("restart", {}, "zero the moments, which hold the gradients of the excursion")
    clip = Remedy("clip", {"max_norm": "auto"}, "hold the next such gradient to the usual size")
    match cause.cause:
        case "lr_too_high" if raised:
            cut = Remedy("scale_lr", {"factor": 0.1}, "the LR rose just before: take it back")
            return [cut, restart] if evidence.adaptive else [cut]
        case "lr_too_high":
            return [
                Remedy("scale_lr", {"factor": 0.5, "ramp": 50}, "a lower LR gives the run its margin back")
            ]
        case "bad_batch" | "stale_moments":
            return [restart, clip]
        case "no_clipping":
            return [clip]
        case _:
            return []
