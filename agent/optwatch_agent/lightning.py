"""Lightning: watch a `lightning.Trainer`.

from optwatch_agent.lightning import OptwatchCallback

trainer = Trainer(max_epochs=…, callbacks=[OptwatchCallback()])
"""

import re
from typing import Any

from lightning.pytorch import Callback

from optwatch_agent.attach import attach
from optwatch_agent.watch import Watch

_VALIDATION = re.compile(r"val(id|idation)?[_/.]")
"""How the names of a validation's metrics begin; they are shown as `val_…`."""


class OptwatchCallback(Callback):
    """Watches the optimizers of each `fit`, automatic or manual, and logs what validations find.

    `options` are those of `optwatch.attach`.
    """

    def __init__(self, **options: Any) -> None:
        self.watch: Watch | None = None
        """What `attach` returned, while it trains."""
        self._options = options

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers, which are made by now, on every rank."""
        made = trainer.optimizers
        if not made:
            return
        options: dict[str, Any] = {"config": dict(pl_module.hparams)}
        if len(made) == 1:
            options["step"] = trainer.global_step  # it counts the steps of all optimizers
        self._end()
        several = {f"optimizer {i}": optimizer for i, optimizer in enumerate(made)}
        self.watch = attach(
            several if len(made) > 1 else made[0], model=pl_module, **(options | self._options)
        )

    def on_train_batch_end(self, trainer: Any, *args: Any, **known: Any) -> None:
        """End the training where a `stop` was commanded."""
        if self.watch is not None and self.watch.should_stop:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the metrics of a validation, `valid/loss` as `val_loss`."""
        if self.watch is not None and not trainer.sanity_checking:
            self.watch.log(
                **{
                    _VALIDATION.sub("val_", name): value
                    for name, value in trainer.callback_metrics.items()
                    if _VALIDATION.match(name)
                }
            )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach."""
        self._end()

    def _end(self) -> None:
        if self.watch is not None:
            self.watch.detach()
            self.watch = None
