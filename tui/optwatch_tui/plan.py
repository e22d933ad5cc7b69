"""How long a run goes on, from what its configuration says under one of the usual names. Pure."""

from collections.abc import Mapping

from optwatch.wire.messages import ConfigValue

_STEPS = (
    "total_steps",
    "max_steps",
    "num_training_steps",
    "train_steps",
    "training_steps",
    "num_steps",
    "n_steps",
    "steps",
    "max_iters",
    "max_iterations",
    "num_iterations",
    "total_iters",
    "iterations",
)
_EPOCHS = ("epochs", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs")
_STEPS_OF_AN_EPOCH = ("steps_per_epoch", "batches_per_epoch", "iters_per_epoch", "num_batches")


def planned_steps(config: Mapping[str, ConfigValue]) -> int | None:
    """The step a run is to end at, None where its configuration does not say.

    A name may stand behind a dot (`trainer.max_steps`). Epochs count where their length is told too.
    """
    numbers: dict[str, float] = {}
    for name, value in config.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15:
            numbers.setdefault(name.rpartition(".")[2].lower().replace("-", "_"), float(value))
    for name in _STEPS:
        if name in numbers:
            return int(numbers[name])
    epochs = next((numbers[name] for name in _EPOCHS if name in numbers), None)
    length = next((numbers[name] for name in _STEPS_OF_AN_EPOCH if name in numbers), None)
    return None if epochs is None or length is None else int(epochs * length)


def seconds_left(step: int, rate: float | None, planned: int | None) -> float | None:
    """Seconds until the planned end at the present rate (steps/s); None where either is unknown."""
    if planned is None or rate is None or not rate > 0:
        return None
    return max(0, planned - step) / rate
