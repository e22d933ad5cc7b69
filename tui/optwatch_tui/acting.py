"""What a key press would do to a run, said before it is done. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from optwatch.wire.actions import Command
from optwatch.wire.requests import Act, Approve, Dismiss, Mode, Request, SetMode, Undo
from optwatch_tui import formats
from optwatch_tui.model import Snapshot


@dataclass(frozen=True)
class Choice:
    """One way to do it: a label, and the request that does it. `why`: the reason that was given for it."""

    label: str
    request: Request
    why: str = ""


@dataclass(frozen=True)
class Preview:
    """A question to the user. `facts`: label and text, a line each; `warning`: why it may not go through."""

    title: str
    choices: tuple[Choice, ...]
    facts: tuple[tuple[str, str], ...]
    warning: str = ""


def preview(action: str, snapshot: Snapshot) -> Preview:
    """The question for an action by hand: restart, scale_lr or clip."""
    run, status = snapshot.status.run, snapshot.status
    options = {"restart": _restart_options, "scale_lr": _lr_options, "clip": _clip_options}[action](snapshot)
    changes, back = {
        "restart": (
            "the optimizer's moments and its step count go to zero, in place; parameters stay",
            "cannot be undone; the moments build up again in about 1/(1-β2) steps",
        ),
        "scale_lr": (
            f"every learning rate is multiplied; now × {formats.setting(status.lr_scale)}",
            "u restores the former scale; the schedule stays as it is",
        ),
        "clip": (
            "gradients with a larger global norm are scaled down to it"
            + ("" if status.clip is None else f"; the limit in force is {formats.setting(status.clip)}"),
            "u restores what was in force before",
        ),
    }[action]
    choices = tuple(
        Choice(label, Act(run=run, action=action, args=args, why="by hand in the terminal UI"))
        for label, args in options
    )
    facts = (("changes", changes), *_where(snapshot), ("to undo", back))
    return Preview(f"{_TITLES[action]}?", choices, facts, _obstacle(action, snapshot))


def preview_approve(command: Command, snapshot: Snapshot) -> Preview:
    """The question for a proposal; the other proposals can be chosen instead."""
    others = (other for other in snapshot.proposals if other.id != command.id)
    choices = tuple(
        Choice(formats.command(each), Approve(each.run, each.id), each.why) for each in (command, *others)
    )
    facts = (*_where(snapshot), ("to undo", "u takes it back; a restart cannot be undone"))
    title = "approve the proposal?" if len(choices) == 1 else "approve which proposal?"
    return Preview(title, choices, facts, _obstacle(command.action, snapshot))


def preview_dismiss(command: Command, snapshot: Snapshot) -> Preview:
    """The question for turning a proposal down, with a reason that stays in its record."""
    reasons = ("", "false alarm", "expected, a planned change", "will be handled in the script")
    choices = tuple(
        Choice(
            f"{formats.command(command)}: {reason or 'no reason given'}",
            Dismiss(command.run, command.id, reason),
        )
        for reason in reasons
    )
    facts = (("why proposed", command.why or "-"), ("changes", "nothing; the proposal is kept as dismissed"))
    return Preview("dismiss the proposal?", choices, facts)


def preview_undo(command: Command, snapshot: Snapshot) -> Preview:
    """The question for taking an applied command back."""
    applied = "-" if command.step is None else f"at step {formats.count(command.step)}"
    facts = (("was applied", applied), *_where(snapshot))
    choice = Choice(f"take back: {formats.command(command)}", Undo(command.run, command.id))
    return Preview("undo?", (choice,), facts, _obstacle(command.action, snapshot))


def preview_mode(snapshot: Snapshot) -> Preview:
    """The question who may act on the run."""
    meaning: dict[Mode, str] = {
        "observe": "nothing is proposed",
        "advise": "the daemon proposes, you decide",
        "auto": "the daemon acts within its limits",
    }
    now = snapshot.status.mode
    others = [mode for mode in meaning if mode != now]
    choices = tuple(Choice(f"{mode}: {meaning[mode]}", SetMode(snapshot.status.run, mode)) for mode in others)
    return Preview(
        "change the mode?", choices, (("now", f"{now}: {meaning[now]}"), ("by hand", "works in every mode"))
    )


_TITLES = {
    "restart": "restart the optimizer",
    "scale_lr": "scale the learning rate",
    "clip": "clip the gradient norm",
}


def _restart_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("restart, all moments", {}),
        ("restart with 100 steps of LR warm-up", {"warmup": 100}),
        ("restart the first moment only", {"moments": "first"}),
        ("restart the second moment only", {"moments": "second"}),
    ]


def _lr_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    lr, scale = snapshot.status.lr, snapshot.status.lr_scale
    options: list[tuple[str, dict[str, Any]]] = []
    for factor in (0.5, 0.1, 0.8, 2.0):
        to = (
            f"  ({formats.number(lr * scale)} → {formats.number(lr * scale * factor)})"
            if lr is not None
            else ""
        )
        options.append((f"LR × {factor:g}{to}", {"factor": factor}))
    if scale != 1:
        options.append(("back to the schedule (× 1)", {"reset": True}))
    return options


def _clip_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    norms = snapshot.columns.column("grad_norm")[1][-200:]
    norms = norms[np.isfinite(norms)]
    options: list[tuple[str, dict[str, Any]]] = [("auto: what is usual for this run", {"max_norm": "auto"})]
    limits = [1.0]
    if len(norms):
        usual = float(f"{np.median(norms):.1e}")
        options.append(
            (f"at {formats.number(usual)}, the median of the last {len(norms)}", {"max_norm": usual})
        )
        limits = [limit for limit in (0.1, 1.0, 10.0) if limit != usual]
    options += [(f"at {limit:g}", {"max_norm": limit}) for limit in limits if limit > 0]
    if snapshot.status.clip is not None:
        options.append(("off", {"off": True}))
    return [option for option in options if option[1].get("max_norm") != 0]


def _where(snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    status = snapshot.status
    if status.world_size > 1:
        return (
            ("on", f"all {status.world_size} ranks, at one step, or on none"),
            ("from", f"a few steps after {formats.count(status.step)}, once every rank has agreed"),
        )
    return (("on", "its one process"), ("from", f"the next step after {formats.count(status.step)}"))


def _obstacle(action: str, snapshot: Snapshot) -> str:
    status = snapshot.status
    if status.state == "ended":
        return "this run has ended: nothing can be applied any more"
    if status.control != "armed":
        return f"control is not armed: {status.control}"
    if action not in status.allow:
        return f"this run does not allow {action}: attach(allow=…) in its script says what may be done"
    hints = [
        hint for optimizer in status.optimizers for hint in optimizer.hints if hint.startswith(f"{action}:")
    ]
    return hints[0] if hints else ""
