"""Hugging Face: watch a `transformers.Trainer`.

    from optwatch_agent.huggingface import OptwatchCallback

    trainer = Trainer(model, args, train_dataset=…, callbacks=[OptwatchCallback()])

The Trainer's own log hides a loss that is NaN or inf (`logging_nan_inf_filter`): it shows the mean of the
others. What is seen here is the loss of each step as it was.
"""

from typing import Any

from transformers import TrainerCallback

from optwatch_agent.attach import attach
from optwatch_agent.watch import Watch

_SHOWN = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "bf16",
    "fp16",
)
"""What of the TrainingArguments is shown with the run."""
_NO_METRICS = ("runtime", "per_second", "compilation_time", "_allocated")
"""Endings of what the Trainer adds to the metrics about its own speed."""


class OptwatchCallback(TrainerCallback):
    """Watches the optimizer of each `train()`, and logs what evaluations find: `eval_loss` as `val_loss`.

    `options` are those of `optwatch.attach`; `name` is by default the Trainer's run_name, else the script's.
    """

    def __init__(self, **options: Any) -> None:
        self.watch: Watch | None = None
        """What `attach` returned, while it trains."""
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Attach to the optimizer, which is made by now, on every rank."""
        shown = {name: getattr(args, name) for name in _SHOWN if getattr(args, name, None) is not None}
        options = {"name": getattr(args, "run_name", None), "step": state.global_step, "config": shown}
        self._end()
        self.watch = attach(known["optimizer"], model=known.get("model"), **(options | self._options))

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """End the training where a `stop` was commanded."""
        if self.watch is not None and self.watch.should_stop:
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **known: Any) -> None:
        """Log the metrics of an evaluation."""
        if self.watch is not None and metrics:
            self.watch.log(
                **{
                    name.replace("eval_", "val_", 1): value
                    for name, value in metrics.items()
                    if name.startswith("eval_") and not name.endswith(_NO_METRICS)
                }
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Detach."""
        self._end()

    def _end(self) -> None:
        if self.watch is not None:
            self.watch.detach()
            self.watch = None
