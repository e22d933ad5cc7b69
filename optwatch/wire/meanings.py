"""What the names of the contract mean, a phrase each: for the reference in `examples/reference`."""

from optwatch.wire.findings import Kind, Severity

SEVERITIES: dict[Severity, str] = {
    "critical": "the run is lost, or will be, unless something is done; calls a person",
    "warning": "something costs the run its result; calls a person, and the policy may act",
    "info": "worth knowing, nothing to be done at once; never acted on",
    "watch": "a leading indicator, shown quietly; never acted on, never counted as an alarm",
}

KINDS: dict[Kind, str] = {
    "non_finite": "NaN or inf in the loss, the gradient norm or a tensor's gradient",
    "divergence": "the loss leaves the range it has had and does not come back",
    "loss_spike": "the loss leaves its range for a few points",
    "slow_divergence": "the loss gives back what it had won, too slowly to leave its range at once",
    "exploding_gradient": "the gradient norm leaves the range it has had",
    "plateau": "the loss falls no longer, well before it could be done",
    "converged": "the loss is flat after all the progress that it was to make",
    "vanishing_gradient": "the gradient shrinks towards the first layers until they do not learn",
    "dead_parameters": "tensors whose gradient is zero sample after sample",
    "epsilon_dominated": "ε, not the second moment, sets the length of most updates",
    "stale_second_moment": "the second moment lags behind the gradients, so that updates are too long",
    "oscillation": "the loss swings to and fro, giving back much of what it won each time",
    "overfitting": "the validation loss rises while the training loss goes on falling",
    "clip_saturated": "nearly every gradient is clipped, by far: the clip sets the length of the steps",
    "loss_scale_collapse": "the GradScaler's scale halves until it is below 1",
    "misconfigured_optimizer": "an unusual setting, seen before the first step; a hint",
    "replica_desync": "replicas that should be equal differ in at least one bit",
    "straggler": "one rank keeps the others waiting, step after step",
    "stalled_rank": "one rank stands still, and the others wait for it",
}

COLUMNS: dict[str, str] = {
    "loss": "the training loss of the step, as `backward` or `watch.log` saw it",
    "lr": "learning rate of the first param_group as scheduled; `lr/1`, … of further groups, up to 64",
    "lr_scale": "what commands multiply the learning rate by, while that is not 1",
    "grad_norm": "global L2 norm of the gradients as the optimizer used them",
    "grad_norm_raw": "the same before clipping, the script's or ours",
    "user_max_norm": "what the script clips the norm to; not seen in a step that is compiled as a whole",
    "user_clip_share": "share of the script's last 100 clippings that changed the gradients",
    "clip": "the norm that a command clips to, while one is in force",
    "noise_std": "standard deviation of the noise that a command adds to the gradients",
    "guard_clip": "the norm that the guard clips to, while it does",
    "guard_skips": "steps that the guard has skipped so far, since their gradients were not finite",
    "update_norm": "global L2 norm of the last update of the parameters, on sampled steps",
    "param_norm": "global L2 norm of the parameters, on sampled steps",
    "step_time": "seconds from the end of one step to the end of the next",
    "arrival": "with several ranks: seconds of a step that a rank spent outside of backward passes",
    "local_norm": "with `comm_hook=True`: norm of this rank's own gradients before they are averaged",
    "loss_scale": "the GradScaler's scale",
    "skipped_steps": "steps that the GradScaler has skipped so far",
    "backward_passes": "backward passes of the step, where there was more than one",
    "batch_size": "with `model=`: first dimension of the input; or what was logged",
    "input_mean": "with `model=`: mean of the first floating input, on sampled steps",
    "input_std": "with `model=`: its standard deviation",
    "input_max": "with `model=`: its largest magnitude",
    "val_loss": "whatever `watch.log(val_loss=…)` says; any other name works alike",
}
"""Columns of a run's series. What a step did not measure is not logged at it."""

STATISTICS: dict[str, str] = {
    "grad_rms": "root mean square of the gradient",
    "grad_max": "its largest magnitude",
    "exp_avg_rms": "root mean square of the first moment, whatever the optimizer calls it",
    "exp_avg_sq_mean": "mean of the second moment",
    "exp_avg_sq_min": "its smallest element",
    "exp_avg_sq_max": "its largest element",
    "param_rms": "root mean square of the parameter",
    "param_max": "its largest magnitude",
    "update_rms": "root mean square of the last update",
    "rms_t": "sqrt(mean(g² / max(v̂, ε²))): 1 where the second moment knows the gradients",
    "cos_grad_exp_avg": "cosine between the gradient and the first moment",
    "eps_share": "share of elements with sqrt(v̂) < 10 ε",
    "grad_zeros": "elements of the gradient that are 0",
    "grad_nonfinite": "elements of the gradient that are NaN or inf",
    "moments_nonfinite": "elements of the first and the second moment that are NaN or inf",
}
"""Statistics of one tensor, on sampled steps."""
