"""Diagnosis: one run's detectors and policy, and how they go on after a restart.

A checkpoint is the state of both after an exact step of the merged series. It is written in one unit
with the findings and commands that came of it; what was recorded after it is taken again from the store
and leads to the same findings. So a kill at any moment neither loses nor repeats a finding or a command.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from optwatch.detect.base import Signal
from optwatch.detect.panel import Panel
from optwatch.policy.engine import Engine
from optwatch.policy.load import DEFAULT
from optwatch.policy.memory import Proposal
from optwatch.policy.rules import Rules
from optwatch.series.points import Points
from optwatch.wire.actions import Command, Outcome
from optwatch.wire.findings import Finding
from optwatch.wire.messages import OptimizerInfo
from optwatch.wire.requests import Mode

log = logging.getLogger(__name__)


class Checkpoint(msgspec.Struct, kw_only=True):
    """What the store keeps of a diagnosis."""

    step: int
    """The last step of the merged series that is in it."""
    panel: dict[str, Any]
    engine: dict[str, Any]


@dataclass(frozen=True)
class Conclusions:
    """What some points led to."""

    findings: Sequence[Finding]
    proposals: Sequence[Proposal]
    outcomes: Sequence[tuple[str, Outcome]]
    withdrawals: Sequence[tuple[str, str]]
    """Proposals whose reason is gone: command id, and why."""


class Diagnosis:
    """Detectors and policy of one run."""

    def __init__(self, run: str, mode: Mode, rules: Rules = DEFAULT) -> None:
        self.step = 0
        """The last step taken."""
        self.broken = ""
        """Why the run is diagnosed no more."""
        self._run = run
        self._panel = Panel(run)
        self._hints: list[Finding] = []
        """Findings about the set-up that the policy has yet to see."""
        self._rules = rules
        self._engine = Engine(mode, rules)

    @property
    def stopped(self) -> str:
        """Why the policy acts no more in this run; empty while it may."""
        return self._engine.stopped

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._panel.findings

    def take(
        self, points: Points, commands: Sequence[Command], allow: Sequence[str], mode: Mode
    ) -> Conclusions:
        """Take the next points of the merged series.

        Whatever they do to a detector or to the policy, the daemon goes on: the run is then no longer
        diagnosed, and `broken` says so.
        """
        self.step = int(points.step[-1])
        if self.broken:
            return Conclusions((), (), (), ())
        self._engine.mode = mode
        try:
            with np.errstate(all="ignore"):  # any numbers may come, and what they mean is for detectors
                findings = self._panel.update(points)
                hints, self._hints = self._hints, []
                proposals = self._engine.update(points, [*hints, *findings], commands, allow)
                withdrawals = self._engine.withdrawals(commands)
            return Conclusions(findings, proposals, self._engine.outcomes(), withdrawals)
        except Exception as error:
            log.exception("run %s: its detectors failed at step %d", self._run, self.step)
            self.broken = f"the detectors of this run failed at step {self.step}: {error!r}"
            return Conclusions((), (), (), ())

    def set_rules(self, rules: Rules) -> None:
        """Follow another policy from now on."""
        self._rules = self._engine.rules = rules

    def setup(self, optimizers: Sequence[OptimizerInfo]) -> list[Finding]:
        """Look over the optimizers; what is to be said about them."""
        found = self._panel.setup(optimizers)
        self._hints += found
        return found

    def observe(self, signal: Signal, observer: str) -> list[Finding]:
        """Take what the daemon itself has seen of the ranks."""
        return self._panel.observe(signal, observer)

    def opened(self, observer: str) -> dict[str, Finding]:
        """The findings of an observer that are not over, by the key of its signals."""
        return self._panel.opened(observer)

    def mark(self, step: int) -> None:
        """A planned change: what follows is not compared with what was before."""
        self._panel.mark(step)
        self._engine.mark(step)

    def repeat(self, step: int) -> None:
        """A new incarnation repeats the steps from `step` on."""
        self._panel.mark(step)
        self.step = step - 1

    def acted(self, step: int, action: str) -> None:
        """A command took effect."""
        self._panel.acted(step, action)

    def checkpoint(self) -> bytes:
        return msgspec.msgpack.encode(
            Checkpoint(step=self.step, panel=self._panel.state(), engine=self._engine.state())
        )

    def restore(self, data: bytes) -> bool:
        """Go on from a checkpoint; False, and anew from the first step, where another version wrote it."""
        try:
            checkpoint = msgspec.msgpack.decode(data, type=Checkpoint)
            self._panel.restore(checkpoint.panel)
            self._engine.restore(checkpoint.engine)
            self.step = checkpoint.step
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("run %s: its detectors begin anew (%s)", self._run, error)
            self._panel = Panel(self._run)
            self._engine = Engine(self._engine.mode, self._rules)
            return False
        return True
