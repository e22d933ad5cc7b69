"""A run for the policy's tests: series with a known course, and a book of commands as a daemon keeps it."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from optwatch.policy.budget import ASKED_BY
from optwatch.policy.engine import Engine
from optwatch.policy.memory import Proposal
from optwatch.series.points import Column, Points
from optwatch.wire.actions import Command, Outcome
from optwatch.wire.findings import Finding

ALLOW = ("restart", "scale_lr", "clip")


def points(first: int, loss: Any, lr: Any = 1e-3) -> Points:
    """Points from the step `first` on; a scalar LR holds for all of them."""
    values = np.asarray(loss, dtype=float)
    rates = np.broadcast_to(np.asarray(lr, dtype=float), values.shape)
    logged = np.ones(len(values), dtype=bool)
    return Points(
        np.arange(first, first + len(values)),
        {"loss": Column(values, logged), "lr": Column(rates, logged)},
    )


def finding(id: int = 1, **changes: Any) -> Finding:
    values = {
        "run": "r",
        "id": id,
        "kind": "divergence",
        "severity": "critical",
        "step": 302,
        "onset_step": 300,
        "summary": "the loss left its range",
    }
    return Finding(**values | changes)


def healthy(steps: np.ndarray, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """A loss that falls like 1 / sqrt(step), with Gaussian noise."""
    return 0.3 + 3 / np.sqrt(steps + 10.0) + np.random.default_rng(seed).normal(0, noise, len(steps))


@dataclass
class Book:
    """Commands and what became of them. With `hold`, they stay where the policy put them."""

    engine: Engine
    hold: bool = False
    commands: list[Command] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    step: int = 0

    def feed(self, part: Points, *findings: Finding, allow: tuple[str, ...] = ALLOW) -> list[Proposal]:
        """One update; what it proposes is written down, and applied at the next step unless held."""
        proposals = self.engine.update(part, findings, self.commands, allow)
        if len(part):
            self.step = int(part.step[-1])
        for id, outcome in self.engine.outcomes():
            assert id not in self.outcomes
            self.outcomes[id] = outcome
            self.change(id, state="judged", outcome=outcome)
        for proposal in proposals:
            self._write(proposal)
        return proposals

    def _write(self, proposal: Proposal) -> None:
        applied = proposal.send and not self.hold
        self.add(
            proposal.action,
            proposal.args,
            state="applied" if applied else "proposed",
            step=self.step + 1 if applied else None,
            asked_by=ASKED_BY,
            finding=proposal.finding,
            undo_of=proposal.undo_of,
        )
        if applied and proposal.undo_of:
            self.change(proposal.undo_of, state="undone")

    def add(self, action: str, args: dict[str, Any], **changes: Any) -> Command:
        values = {"state": "applied", "asked_by": "user", "why": "", "asked_at": 0.0}
        command = Command(
            id=str(len(self.commands) + 1), run="r", action=action, args=args, **values | changes
        )
        self.commands.append(command)
        return command

    def change(self, id: str, **changes: Any) -> None:
        index = int(id) - 1
        self.commands[index] = msgspec.structs.replace(self.commands[index], **changes)
