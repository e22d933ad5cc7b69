"""What `attach` returns: the handle that a training script holds."""

import html
import logging
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from optwatch_agent import glance
from optwatch_agent.agent import Agent
from optwatch_agent.mirrors import SCALARS, Listener, mirror_of
from optwatch_agent.recorder import Value, column_name
from optwatch_agent.signals import let_through
from optwatch_agent.tensors import on_cpu

log = logging.getLogger("optwatch")

_MOST_COMPLAINTS = 100
_MOST_NAMES = 320
"""Names of logged values; the other columns of a run are for what the agent measures."""


class Watch:
    """An attachment to the optimizers of a training. No method of it ever raises into the loop."""

    def __init__(self, agent: Agent | None) -> None:
        self._held = agent
        """None where the agent failed to attach: then nothing is watched."""
        self._told: set[str] = set()
        self._names: set[str] = set()
        """Under which something was logged."""
        if agent is not None and "ipykernel" in sys.modules:
            agent.mirroring.add(Listener(_heard), 0)  # so that `_repr_html_` has what is found

    @property
    def _agent(self) -> Agent:
        assert self._held is not None
        return self._held

    @property
    def run(self) -> str:
        """The id of the run, "" where the agent failed to attach."""
        return "" if self._held is None else self._agent.identity.run

    def log(self, **values: float | Tensor) -> None:
        """Record scalars for the step: numbers or tensors of one element (on a device: without a sync), under
        320 names at most.

        Called between two steps they belong to the one that was completed, or to the coming one once its
        backward has begun or the completed one is on its way, half a second after its end. What is logged
        that late after the last step is recorded at the step that would have come.
        """
        try:
            checked: dict[str, Value] = {}
            for name, value in values.items():
                if (number := _value(value)) is None:
                    text = f"log({name}=…) takes a number or a tensor of one element"
                    self._complain(f"{text}, not {_kind(value)}: ignored", about=name)
                elif name not in self._names and len(self._names) >= _MOST_NAMES:
                    self._complain(f"log takes {_MOST_NAMES} names: {name} and others are ignored")
                else:
                    self._names.add(name)
                    checked[column_name(name)] = number
            if self._held is not None and not self._agent.closed:
                self._agent.tracks[0].log(checked)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._complain(f"log failed: {error!r}")

    def mark(self, text: str) -> None:
        """Say that something planned changes here, such as a curriculum stage."""
        try:
            if self._held is not None and not self._agent.closed:
                self._agent.event("mark", str(text))
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._complain(f"mark failed: {error!r}")

    def mirror(self, run: Any, scalars: Iterable[str] = SCALARS) -> None:
        """Bring what optwatch finds and does, and some of its scalars, into a run that the script has open.

        The daemon tells it, about once a second, of all ranks together; so one rank is enough. A thread of
        its own calls the run, whose own step does not move. Call `detach` before the run is finished.

        Args:
            run: a Weights & Biases run, an MLflow run (or a client with an active run), a Trackio run; or a
                function that is called with each `optwatch.wire.findings.Finding` and
                `optwatch.wire.actions.Command`, and again whenever one has changed.
            scalars: columns that are mirrored as `optwatch/COLUMN`, at most 64; not for a function. The names
                are those of the table in `optwatch_agent.mirrors`.
        """
        try:
            if self._held is not None and not self._agent.closed:
                mirror = mirror_of(run, tuple(map(column_name, scalars)))
                self._agent.mirroring.add(mirror, self._agent.tracks[0].completed)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._complain(f"mirror takes {error}" if isinstance(error, TypeError) else f"mirror: {error!r}")

    @property
    def should_stop(self) -> bool:
        """Whether a `stop` was commanded: to be looked at between steps, where the script can end.

        Over several ranks it turns True during the same step on all of them, or on none.
        """
        return self._held is not None and self._agent.control.stopped

    def detach(self) -> None:
        """Take every hook, wrapper, thread and socket off again, after sending what is left."""
        try:
            if self._held is not None:
                self._agent.close("detached")
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            self._complain(f"detach failed: {error!r}")

    def _repr_html_(self) -> str:
        """How a notebook shows it: the run, where it stands, its loss so far, and what was found and done."""
        try:
            return "" if self._held is None else glance.html(self._held)
        except Exception as error:  # noqa: BLE001 - never into the training loop
            let_through(error)
            return f"<pre>{html.escape(repr(error))}</pre>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def _complain(self, text: str, about: str = "") -> None:
        """Say it once, of each name that was logged."""
        if about not in self._told and len(self._told) < _MOST_COMPLAINTS:
            self._told.add(about)
            log.warning("optwatch: %s", text)


def _heard(item: object) -> None:
    """It is kept where it comes in."""


def _value(value: Any) -> Value | None:
    try:
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex() or value.is_meta:
                return None
            with torch.no_grad():
                value = value.detach().reshape(())
                return float(value.item()) if on_cpu(value) else value.clone()
        return None if isinstance(value, (str, bytes)) else float(value)
    except Exception as error:  # noqa: BLE001 - whatever is handed in may raise what it likes
        let_through(error)
        return None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one of shape {tuple(value.shape)} and {value.dtype} on {value.device}"
    return f"an {type(value).__name__} that large" if isinstance(value, int) else type(value).__name__
