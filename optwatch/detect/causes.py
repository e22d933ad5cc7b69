"""From a finding and what else the run shows to its likely causes, each with its reason in numbers."""

import math
from collections.abc import Callable, Collection

from optwatch.detect.base import Signal
from optwatch.detect.evidence import Evidence
from optwatch.detect.insides import inside
from optwatch.wire.findings import Cause, CauseName, Kind

Belief = dict[CauseName, tuple[float, str]]
"""Odds, not normalised, and why."""

KEPT = 4
"""Causes that are named."""
EARLY = 50
"""Steps from the start in which a divergence is one of the set-up."""
RAISED = 1.5
"""An LR that rose by this factor has changed."""
ONE_OFF = 10.0
"""A gradient norm this many times the usual is an event, not a drift."""
HELD_DOWN = 3.0
"""A second moment that holds the updates at less than one part in so many is what matters of a gradient."""
AT_ONCE, THROWN = 3, 3.0
"""A loss this many times its level within so many steps was thrown out of its range by what came then."""
SLOW_UPDATES = 3e-4
"""Update/param ratio of the median layer below which an LR is too low (healthy: 8e-4 to 1.4e-2)."""
NOISY = 3.0
"""Gradient noise scale, in batches, above which the noise of the batch rules the step."""
FADED = 5.0
"""An update/param ratio that fell by this factor at one LR: the optimizer's own step has faded."""
LARGE_BATCH = 4_096
"""Samples from which on layer-wise optimizers are used (You et al. 2020)."""
TRANSIENT = 1.2
"""A loss that first rose by this factor and then went nowhere was thrown there by its LR."""


def causes_of(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> tuple[Cause, ...]:
    """The causes of a signal, the likeliest first; `also`: the kinds of the other open findings."""
    if signal.causes:
        return signal.causes
    beliefs = RULES[signal.kind](signal, evidence, also) if signal.kind in RULES else {}
    beliefs |= inside(signal, evidence)
    ranked = sorted(beliefs.items(), key=lambda item: -item[1][0])[:KEPT]
    total = sum(odds for _, (odds, _) in ranked)
    return tuple(Cause(name, round(odds / total, 2), because) for name, (odds, because) in ranked)


def _excursion(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    """Causes of a loss or a gradient that leaves its range."""
    if isinstance(ratio := signal.evidence.get("sensitivity"), float):
        why = f"the loss changes by up to {ratio:.3g} % for 1 % of a layer, before anything is learned"
        return {"bad_init": (3.0, why), "no_clipping": (1.5, why), "architecture": (1.0, why)}
    onset, step = signal.onset_step, signal.step
    beliefs: Belief = {}
    rate, rise = evidence.rate_rise(onset, step)
    norm = evidence.norm_rise(onset, step)
    passed = evidence.steps_from_start(onset)
    unchanged = "the LR did not change" if math.isfinite(rate) else "no LR was logged"
    if rise > RAISED:
        beliefs["lr_too_high"] = 6.0, f"the LR rose × {rise:.3g}, to {rate:.3g}, within 25 steps before"
        if evidence.adaptive:
            beliefs["stale_moments"] = 1.0, "the moments took in the gradients of those steps"
    elif passed < EARLY:
        beliefs["lr_too_high"] = 4.0, f"it began {passed} steps from the start" + _at(rate)
        beliefs["lr_schedule"] = 1.5, "so early a warm-up would still have kept the LR low"
        beliefs["unscaled_inputs"] = 0.5, "so early the scale of the inputs may be at fault"
        share = evidence.first_over_last(step)
        if share > 30:
            beliefs["unscaled_inputs"] = 4.0, f"the first layers' gradient is {share:.3g} × the last layers'"
        if (size := evidence.batch_size(step)) >= LARGE_BATCH and not evidence.layerwise:
            beliefs["wrong_optimizer"] = 1.0, f"one LR for all layers at a batch of {size:.0f}"
    elif norm > ONE_OFF:
        beliefs["bad_batch"] = 3.0, f"the gradient norm was {norm:.3g} × its median at once, {unchanged}"
        if evidence.adaptive:
            beliefs["stale_moments"] = 1.5, f"a gradient {norm:.3g} × the usual stays in the moments"
        if evidence.held_down(norm) > HELD_DOWN:
            beliefs["stale_moments"] = 8.0, f"a gradient {norm:.3g} × the usual rules the moments"
        if not evidence.clipped(step):
            beliefs["no_clipping"] = 1.0, f"nothing clipped a gradient norm {norm:.3g} × its median"
        beliefs["lr_too_high"] = 1.0, f"{unchanged}, but it leaves no margin" + _at(rate)
    elif step - onset < AT_ONCE and (jump := _jump(signal)) > THROWN:
        beliefs["bad_batch"] = 3.0, f"the loss was {jump:.3g} × its level at once, {unchanged}"
        if evidence.adaptive:
            beliefs["stale_moments"] = 1.5, f"the gradient of a loss {jump:.3g} × its level stays in them"
        beliefs["lr_too_high"] = 1.0, f"{unchanged}, but it leaves no margin" + _at(rate)
    else:
        grown = (
            f"the gradient norm grew × {norm:.3g} with it" if math.isfinite(norm) else "no norm was logged"
        )
        beliefs["lr_too_high"] = 2.0, f"{grown}, {unchanged}" + _at(rate)
        beliefs["data_shift"] = 1.5, f"the loss changed its level, {grown}"
        beliefs["bad_batch"] = 1.0, f"{unchanged}; other data may have come"
    _moments(beliefs, evidence)
    if evidence.scaled(step):
        beliefs["fp16_overflow"] = 0.5, "the run uses a loss scale"
    return beliefs


def _jump(signal: Signal) -> float:
    """The greatest loss of an excursion over the level before it, 0 where that is not known."""
    peak, before = signal.evidence.get("loss_peak"), signal.evidence.get("loss_before")
    return peak / before if isinstance(peak, float) and isinstance(before, float) and before > 0 else 0.0


def _moments(beliefs: Belief, evidence: Evidence) -> None:
    if evidence.beta2 < 0.9:
        steps = 1 / max(1 - evidence.beta2, 1e-9)
        beliefs["betas"] = 3.0, f"β2 = {evidence.beta2:g} averages over {steps:.0f} steps only"


def _at(rate: float) -> str:
    return f", at an LR of {rate:.3g}" if math.isfinite(rate) else ""


def _slow(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    rate, rise = evidence.rate_rise(signal.onset_step, signal.step)
    lost = f"{signal.evidence.get('progress_lost', math.nan):.0%} of the progress is lost"
    beliefs: Belief = {
        "lr_too_high": (3.0, lost + _at(rate)),
        "data_shift": (1.5, f"{lost}, slowly; the data may have changed"),
        "lr_schedule": (1.0, f"the LR did not fall{_at(rate)}"),
    }
    if rise > RAISED:
        beliefs["lr_too_high"] = 6.0, f"the LR rose × {rise:.3g}, to {rate:.3g}; {lost}"
    elif signal.severity == "watch":
        beliefs["data_shift"] = 6.0, f"{lost}, from one step to the next, without a gradient of its own"
    norm = evidence.norm_rise(signal.onset_step - 25, signal.step)
    if norm > ONE_OFF and rise <= RAISED:
        beliefs["bad_batch"] = 4.0, f"the gradient norm was {norm:.3g} × its median at times; {lost}"
    _moments(beliefs, evidence)
    return beliefs


def _oscillation(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    swings = f"{signal.evidence.get('swings')} swings within 100 points"
    beliefs: Belief = {
        "lr_too_high": (5.0, swings + _at(evidence.rate(signal.step))),
        "betas": (1.0, f"{swings}: momentum overshoots"),
        "batch_too_small": (0.5, swings),
    }
    if (scale := evidence.noise_scale(signal.step)) > NOISY:
        beliefs["batch_too_small"] = 4.0, f"the gradient noise scale is {scale:.3g} × the batch; {swings}"
    _moments(beliefs, evidence)
    return beliefs


def _plateau(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    if signal.kind == "converged":
        return {"finished": (1.0, f"{signal.evidence.get('progress', 0.0):.0%} below the start, and flat")}
    numbers = {name: value for name, value in signal.evidence.items() if isinstance(value, float)}
    beliefs: Belief = {}
    cut = numbers.get("lr_cut", 1.0)
    if cut > 1:
        where = f"the LR fell to 1/{cut:.3g} at step {signal.evidence.get('lr_cut_step')}"
        beliefs["lr_too_low"] = 5.0, f"{where}{_at(evidence.rate(signal.step))}"
        beliefs["lr_schedule"] = 3.0, where
    if "pace_before" in numbers:
        return beliefs
    ratio = evidence.update_ratio(signal.step)
    if ratio < SLOW_UPDATES:
        beliefs["lr_too_low"] = (
            5.0,
            f"the median layer's update/param ratio is {ratio:.2g}; usual is over 8e-4",
        )
    if signal.severity == "warning":
        peak = numbers.get("early_peak_over_start", 1.0)
        if peak > TRANSIENT:
            beliefs["lr_too_high"] = 4.0, f"the loss first rose to {peak:.3g} × its start, then went nowhere"
        if "vanishing_gradient" in also:
            beliefs["saturated_activations"] = 4.0, "the gradient vanishes towards the first layers"
        if "dead_parameters" in also:
            beliefs["dead_units"] = 4.0, "a layer's gradient is zero"
            beliefs["bad_init"] = 3.0, "a layer's gradient is zero"
        beliefs.setdefault("bad_init", (1.0, "no progress from the start on"))
        beliefs.setdefault("lr_too_low", (1.0, "no progress" + _at(evidence.rate(signal.step))))
        beliefs["flat_landscape"] = 1.0, "no progress, no growth of the gradient"
    else:
        beliefs["flat_landscape"] = 1.0, f"flat for {signal.evidence.get('window')} points"
        beliefs.setdefault(
            "lr_schedule", (1.5, "flat at an LR that is still high" + _at(evidence.rate(signal.step)))
        )
        if evidence.convolution and evidence.adaptive and evidence.kind:
            beliefs["wrong_optimizer"] = 0.5, f"flat under {evidence.kind} on convolutions"
    if evidence.kind == "Adagrad" and (fall := evidence.update_fall(signal.step)) > FADED:
        beliefs["wrong_optimizer"] = (
            5.0,
            f"Adagrad's step has faded to 1/{fall:.3g} of what it was at the same LR",
        )
    elif evidence.kind.startswith("SGD") and evidence.attention:
        beliefs["wrong_optimizer"] = 2.0, f"{evidence.kind} on attention layers"
    return beliefs


def _vanishing(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    share = signal.evidence.get("first_over_last")
    decay = f"the gradient decays to {share:.1e} over depth" if isinstance(share, float) else signal.summary
    return {
        "saturated_activations": (3.0, f"{decay}, as behind sigmoid or tanh units"),
        "architecture": (2.0, f"{decay}: no path around the layers"),
        "bad_init": (2.0, f"{decay} from step {signal.onset_step} on"),
    }


def _dead(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    share = f"{signal.evidence.get('value', math.nan):.0%} of a layer's gradient is zero"
    beliefs: Belief = {"dead_units": (3.0, share), "bad_init": (1.0, share)}
    if evidence.steps_from_start(signal.onset_step) < 3:
        beliefs["bad_init"] = 4.0, f"{share} from the first step on"
    elif "divergence" in also:
        beliefs["lr_too_high"] = 4.0, f"{share} since the loss left its range"
    else:
        beliefs["lr_too_high"] = 2.0, share
    return beliefs


def _epsilon(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    share = f"in the median layer {signal.evidence.get('median', math.nan):.0%} of sqrt(v̂) are below 10 ε"
    if evidence.epsilon > 1e-6:
        return {"epsilon": (4.0, f"ε = {evidence.epsilon:g}: {share}")}
    return {"epsilon": (2.0, share), "flat_landscape": (1.0, f"{share}: gradients are tiny")}


def _stale(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    return {
        "stale_moments": (3.0, f"RMS_t {signal.evidence.get('value', math.nan):.2g}"),
        "betas": (1.0, f"β2 = {evidence.beta2:g}" if math.isfinite(evidence.beta2) else "a long memory"),
    }


def _non_finite(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    where = str(signal.evidence.get("where", "a value"))
    beliefs: Belief = {}
    if where == "moments":  # with the loss and the gradients finite, as the parameters are
        beliefs["stale_moments"] = 6.0, "moments stay non-finite, and what they update does not move"
    passed = evidence.steps_from_start(signal.onset_step)
    rate, rise = evidence.rate_rise(signal.onset_step, signal.step)
    if evidence.scaled(signal.step):
        beliefs["fp16_overflow"] = 3.0, f"{where} non-finite under a loss scale"
    if "divergence" in also or rise > RAISED:
        raised = f", and the LR rose × {rise:.3g}" if rise > RAISED else ""
        beliefs["lr_too_high"] = 4.0, f"the loss had left its range before{raised}{_at(rate)}"
    elif passed < 3:
        beliefs["bad_init"] = 1.5, f"{where} non-finite at the first step"
        beliefs["unscaled_inputs"] = 1.5, f"{where} non-finite at the first step"
    beliefs.setdefault("bad_batch", (2.0, f"{where} non-finite, without a sign before"))
    beliefs["hardware_fault"] = 0.5, "one value of a memory that fails is enough"
    return beliefs


def _overfitting(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    best = f"the validation loss was best at step {signal.evidence.get('best_step')}"
    return {
        "finished": (2.0, best),
        "weight_decay": (1.0, f"{best}; too little regularisation"),
        "noisy_labels": (0.5, f"{best}; what is learned since does not carry over"),
    }


def _clip(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    share = f"{signal.evidence.get('share', math.nan):.0%} of the steps were clipped"
    return {"lr_too_low": (1.0, f"{share}: the clip sets the step's length"), "unscaled_inputs": (1.0, share)}


def _loss_scale(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    return {
        "fp16_overflow": (3.0, signal.summary),
        "lr_too_high": (1.0, "gradients overflow at every scale"),
    }


def _desync(signal: Signal, evidence: Evidence, also: Collection[Kind]) -> Belief:
    tensors, of = signal.evidence.get("tensors", 0), signal.evidence.get("of_tensors", 0)
    if not isinstance(tensors, int) or not isinstance(of, int) or not of:
        return {"hardware_fault": (1.0, "replicas that ran the same steps hold other bits")}
    parts = signal.evidence.get("parts")
    if "agreed_step" not in signal.evidence and 2 * tensors > of:
        return {
            "bad_init": (3.0, f"{tensors} of {of} tensors differ, and never agreed: the ranks began apart"),
            "hardware_fault": (1.0, f"{tensors} of {of} tensors differ"),
        }
    if 2 * tensors > of:
        return {
            "hardware_fault": (2.0, f"{tensors} of {of} tensors differ, after they had agreed"),
            "lr_schedule": (1.0, f"an LR that differs over ranks changes all: {tensors} of {of} differ"),
        }
    return {
        "hardware_fault": (4.0, f"only {tensors} of {of} tensors differ ({parts}), as after a flipped bit")
    }


RULES: dict[Kind, Callable[[Signal, Evidence, Collection[Kind]], Belief]] = {
    "divergence": _excursion,
    "loss_spike": _excursion,
    "exploding_gradient": _excursion,
    "slow_divergence": _slow,
    "oscillation": _oscillation,
    "plateau": _plateau,
    "converged": _plateau,
    "vanishing_gradient": _vanishing,
    "dead_parameters": _dead,
    "epsilon_dominated": _epsilon,
    "stale_second_moment": _stale,
    "non_finite": _non_finite,
    "overfitting": _overfitting,
    "clip_saturated": _clip,
    "loss_scale_collapse": _loss_scale,
    "replica_desync": _desync,
}
