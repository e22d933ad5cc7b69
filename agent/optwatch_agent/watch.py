"""What `attach` returns: the handle that a training script holds."""

import logging
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from optwatch_agent.agent import Agent
from optwatch_agent.recorder import Value, column_name

log = logging.getLogger("optwatch")


class Watch:
    """An attachment to the optimizers of a training. No method of it ever raises into the loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._complained = False

    @property
    def run(self) -> str:
        """The id of the run."""
        return self._agent.identity.run

    def log(self, **values: float | Tensor) -> None:
        """Record scalars for the step: numbers or tensors of one element (on a device: without a sync).

        Called between two steps they belong to the one that was completed, or to the coming one once its
        backward has begun.
        """
        try:
            checked: dict[str, Value] = {}
            for name, value in values.items():
                if (number := _value(value)) is None:
                    self._complain(f"log({name}=…) takes a number, not {type(value).__name__}: ignored")
                else:
                    checked[column_name(name)] = number
            if not self._agent.closed:
                self._agent.tracks[0].log(checked)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._complain(f"log failed: {error!r}")

    def mark(self, text: str) -> None:
        """Say that something planned changes here, such as a curriculum stage."""
        try:
            if not self._agent.closed:
                self._agent.event("mark", str(text))
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._complain(f"mark failed: {error!r}")

    def detach(self) -> None:
        """Take every hook, wrapper, thread and socket off again, after sending what is left."""
        try:
            self._agent.close("detached")
        except Exception as error:  # noqa: BLE001 - never into the training loop
            self._complain(f"detach failed: {error!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("optwatch: %s", text)


def _value(value: Any) -> Value | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return None
        with torch.no_grad():
            value = value.detach().reshape(())
            return float(value.item()) if value.device.type == "cpu" else value.clone()
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
