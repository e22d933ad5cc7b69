"""In force: what the commands that were applied add up to, and how one of them is taken back."""

import math
from collections.abc import Mapping
from typing import Any

from optwatch.daemon.entries import CommandError, Entry
from optwatch.wire.actions import Clip, Perturb, Restart, Rollback, ScaleLr, Snapshot, Stop, parse_action

LR_FLOOR = 0.01
"""The least share of the schedule's learning rate that a command may leave."""
MAX_FACTOR = 100.0


class InForce:
    """The LR scale and the clip that the processes of a run have applied."""

    def __init__(self) -> None:
        self.lr_scale = 1.0
        self.clip: float | str | None = None

    def note(self, entry: Entry, numbers: Mapping[str, float]) -> None:
        """A command was applied; `numbers`: what the first rank that did told with it."""
        action = parse_action(entry.command.action, entry.command.args)
        if isinstance(action, ScaleLr):
            entry.before = self.lr_scale
            scale = 1.0 if action.reset else self.lr_scale * (action.factor or 1.0)
            self.lr_scale = numbers.get("lr_scale", scale)
            entry.after = self.lr_scale
        elif isinstance(action, Clip):
            entry.before = self.clip
            self.clip = None if action.off else "auto" if action.adapt else action.max_norm
            entry.after = self.clip

    def restore(self, entry: Entry) -> None:
        """A command was applied, as was noted with the first rank that did; others may have yet to tell."""
        if entry.command.ranks_applied:
            if entry.command.action == "scale_lr" and isinstance(entry.after, (int, float)):
                self.lr_scale = float(entry.after)
            elif entry.command.action == "clip":
                self.clip = entry.after

    def too_low(self, factor: float) -> bool:
        """Whether a factor would take the LR scale below what a command may leave."""
        return self.lr_scale * factor < LR_FLOOR * (1 - 1e-9)  # two cuts of 0.1 reach the floor, and may

    def inverse(self, entry: Entry) -> tuple[str, dict[str, Any]]:
        """The action that takes an applied command back, and its arguments.

        Raises:
            CommandError: there is none.
        """
        action = parse_action(entry.command.action, entry.command.args)
        if isinstance(action, Restart):
            raise CommandError("bad_request", "a restart cannot be undone: the moments it zeroed are gone")
        if isinstance(action, Rollback):
            raise CommandError("bad_request", "a rollback cannot be undone: what it put away was not kept")
        if isinstance(action, Perturb):
            if action.target == "grad" and not action.off:
                return "perturb", {"off": True}
            what = "parameters are changed for good" if action.target == "param" else "give the noise anew"
            raise CommandError("bad_request", f"this perturb cannot be undone: {what}")
        if isinstance(action, Snapshot):
            raise CommandError("bad_request", "a snapshot changed nothing: there is nothing to undo")
        if isinstance(action, Stop):
            raise CommandError("bad_request", "a stop cannot be undone: the script has been told")
        if isinstance(action, Clip):
            former = entry.before
            return "clip", {"off": True} if former is None else {"max_norm": former}
        before, after = entry.before, entry.after
        if not isinstance(before, (int, float)) or not isinstance(after, (int, float)) or after <= 0:
            raise CommandError("bad_request", f"the scale before command {entry.command.id} is not known")
        target = self.lr_scale * before / after
        if math.isclose(target, 1.0, rel_tol=1e-9):
            return "scale_lr", {"reset": True}
        if before / after > MAX_FACTOR:
            raise CommandError(
                "bad_request",
                f"the scale before was {before:g}, too far from {self.lr_scale:g} for one command",
            )
        return "scale_lr", {"factor": before / after}
