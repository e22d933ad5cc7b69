"""Columns as TensorBoard tags, and the charts that they make.

The loss is where TensorBoard's users look for it; what only optwatch measures is under `optwatch/`.
"""

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Points, Samples

F8 = npt.NDArray[np.float64]

MARKERS = "optwatch/markers/"
"""Prefix of the tags that mark a step: findings by kind, commands by action at the step of their effect."""
ON_LOSS = MARKERS + "on_loss/"
"""Prefix of the markers beside the curve of the loss: a tag each, so that no line joins them."""
TENSORS = "optwatch/tensor/"
"""Prefix of the tags of single tensors."""
GRADIENTS = "optwatch/gradient/"
LOG2_GRADIENTS = "optwatch/gradient_log2/"
"""Prefixes of the histograms of gradients: by value, and by log2 of the magnitude."""
WHOLE_MODEL = "all"
"""The tensor's name in the histograms of all tensors together."""
OUTCOME = "outcome/"
"""Prefix of what a run came to: metrics for the HParams dashboard."""

_COLUMNS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "grad_norm": "optwatch/grad_norm/global",
    "grad_norm_raw": "optwatch/grad_norm/before_clipping",
    "update_norm": "optwatch/norm/update",
    "param_norm": "optwatch/norm/param",
    "lr": "optwatch/lr/scheduled",
    "lr_scale": "optwatch/lr/scale",
    "step_time": "optwatch/time/step",
}

CHARTS = {
    "optwatch": {
        "loss: training, validation, findings, commands": [r"loss/.*", ON_LOSS + ".*"],
        "gradient norm": [r"optwatch/grad_norm/.*"],
        "learning rate, scheduled and effective": [r"optwatch/lr/(scheduled|effective).*"],
        "learning rate, scale by commands": [r"optwatch/lr/scale"],
        "findings (0 watch to 3 critical) and commands": [MARKERS + "(finding|command)/.*"],
    },
    "optwatch: optimizer": {
        "update / param": [r"optwatch/ratio/update_param"],
        "update and param norms": [r"optwatch/norm/.*"],
        "first moment, root mean square": [r"optwatch/moment/exp_avg_rms"],
        "second moment, mean": [r"optwatch/moment/exp_avg_sq_mean"],
        "RMS_t, largest of a tensor": [r"optwatch/moment/rms_t.*"],
        "time of a step": [r"optwatch/time/.*"],
    },
}
"""The layout of the Custom Scalars dashboard: category, chart, tags as regular expressions."""


def column_tag(column: str) -> str:
    """The tag of a column. What the user logged keeps its own name."""
    if (tag := _COLUMNS.get(column)) is not None:
        return tag
    if column.startswith("lr/"):
        return f"optwatch/lr/scheduled_group_{column.removeprefix('lr/')}"
    return column


def derived(points: Points) -> dict[str, F8]:
    """Columns that follow from others, f8[n] by tag, NaN where one of them was not logged."""
    found: dict[str, F8] = {}
    if "lr" in points.columns:
        scale = points.column("lr_scale")
        found["optwatch/lr/effective"] = points.column("lr").values * np.where(
            scale.logged, scale.values, 1.0
        )
    if {"update_norm", "param_norm"} <= points.columns.keys():
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = points.column("update_norm").values / points.column("param_norm").values
        found["optwatch/ratio/update_param"] = np.where(np.isfinite(ratio), ratio, np.nan)
    return found


def sample_scalars(samples: Samples) -> dict[str, F8]:
    """The moments of the whole model at each sample, f8[k] by tag, NaN where nothing was measured.

    The first moment's root mean square and the second's mean are over all elements; RMS_t is that of the
    tensor where it is largest.
    """
    found = {}
    numel = samples.numel.astype(np.float64)
    for tag, stat, power in [
        ("optwatch/moment/exp_avg_rms", "exp_avg_rms", 2),
        ("optwatch/moment/exp_avg_sq_mean", "exp_avg_sq_mean", 1),
    ]:
        if (values := samples.stats.get(stat)) is not None:
            wide = values.astype(np.float64)
            known = ~np.isnan(wide)
            weight = (known * numel).sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                mean = (np.where(known, wide, 0.0) ** power * numel).sum(axis=1) / weight
                found[tag] = mean ** (1 / power)
    if (values := samples.stats.get("rms_t")) is not None and values.shape[1]:
        wide = np.where(np.isnan(values), -np.inf, values).max(axis=1).astype(np.float64)
        found["optwatch/moment/rms_t_max"] = np.where(wide == -np.inf, np.nan, wide)
    return found


def tensor_scalars(samples: Samples) -> dict[str, F8]:
    """Each statistic of each tensor, f8[k] by tag."""
    return {
        f"{TENSORS}{stat}/{name}": values[:, index].astype(np.float64)
        for stat, values in samples.stats.items()
        for index, name in enumerate(samples.names)
    }
