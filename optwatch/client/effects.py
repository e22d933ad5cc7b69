"""What an action would do to a run, said before it is done: for a screen and for a dry run alike. Pure."""

from collections.abc import Mapping
from typing import Any

from optwatch.client import words
from optwatch.wire.actions import ACTIONS
from optwatch.wire.requests import RunStatus

Fact = tuple[str, str]
"""A label and a text."""


def effects(action: str, args: Mapping[str, Any], status: RunStatus, undo: str) -> tuple[Fact, ...]:
    """What an action does with these arguments, on which ranks, from which step, and the way back."""
    facts: list[Fact] = []
    if action == "restart":
        which = {"first": "the first moment goes", "second": "the second moment goes"}.get(
            str(args.get("moments", "all")), "the optimizer's moments and its step count go"
        )
        facts.append(("changes", f"{which} to zero, in place; parameters stay"))
        if args.get("warmup"):
            facts.append(("then", f"the LR warms up over {words.count(int(args['warmup']))} steps"))
        back = "cannot be undone; the moments build up again in about 1/(1-β2) steps"
    elif action == "scale_lr":
        to = 1.0 if args.get("reset") else status.lr_scale * float(args.get("factor") or 1.0)
        over = f", over {words.count(int(args['ramp']))} steps" if args.get("ramp") else ""
        facts.append(
            ("changes", f"the LR scale: × {words.setting(status.lr_scale)} → × {words.setting(to)}{over}")
        )
        if status.lr is not None:
            now, then = status.lr * status.lr_scale, status.lr * to
            facts.append(
                ("learning rate", f"{words.number(now)} → {words.number(then)}; the schedule goes on")
            )
        back = f"{undo} restores the former scale"
    elif action == "clip":
        now_clip = "not clipped" if status.clip is None else f"clipped at {words.setting(status.clip)}"
        to_clip = "not clipped" if args.get("off") else words.action(action, args)
        facts.append(("changes", f"gradients above the limit are scaled down to it: {now_clip} → {to_clip}"))
        back = f"{undo} restores what was in force before"
    elif action == "perturb":
        facts.append(("changes", _noise_text(args)))
        back = f"{undo} ends the noise; what it did to the parameters stays"
        if args.get("target") == "param":
            back = "cannot be undone; a snapshot taken first can be rolled back to"
    elif action == "snapshot":
        facts.append(("changes", "nothing in the training; a copy goes to each host's memory"))
        back = "nothing to undo; the oldest snapshot makes room"
    elif action == "rollback":
        facts += _rollback_facts(args, status)
        back = "cannot be undone: what is put away is not kept, nor are later snapshots"
    elif action == "stop":
        facts.append(
            ("changes", "nothing by itself: watch.should_stop is True, for a script that looks at it")
        )
        back = "cannot be undone"
    else:
        facts.append(("changes", action_doc(action)))
        back = f"{undo} takes it back where that can be; the daemon says so where not"
    return (*facts, *_groups(status), *where(status), ("to undo", back))


def _noise_text(args: Mapping[str, Any]) -> str:
    """What noise goes where, and how it fades."""
    if args.get("off"):
        return "no more noise on the gradients"
    std = words.setting(args.get("std"))
    if args.get("target") == "param":
        return f"Gaussian noise of standard deviation {std} on every parameter, once"
    decay = words.setting(args.get("decay", 0.55))
    return (
        f"Gaussian noise on every gradient, σ = {std} at first; σ² fades like (1 + t)^-{decay} over t steps"
    )


def _rollback_facts(args: Mapping[str, Any], status: RunStatus) -> list[Fact]:
    """What is put back, and how much training goes with it."""
    to = args.get("to_step", "last-good")
    chosen = f"the snapshot of step {words.count(to)}" if isinstance(to, int) else "the newest good snapshot"
    rng = ", and random generators" if args.get("rng") else ""
    facts = [
        ("changes", f"parameters, optimizer state and buffers{rng}: back to {chosen}"),
        ("stays", "the LR schedule, the data's order, LR scale and clip in force; the step count goes on"),
    ]
    if isinstance(to, int) and to <= status.step:
        facts.append(("lost", f"the training of {words.count(status.step - to)} steps so far"))
    held = ", ".join(map(words.count, status.snapshots)) or "none yet"
    return [*facts, ("snapshots", f"held by every rank: {held}")]


def _groups(status: RunStatus) -> tuple[Fact, ...]:
    """Which parameter groups of which optimizers it is about."""
    parts = []
    for optimizer in status.optimizers:
        groups = len(optimizer.groups)
        tensors = sum(group.tensors for group in optimizer.groups)
        many = "s" * (groups != 1)
        parts.append(f"{words.plain(optimizer.kind)}, {groups} group{many}, {words.count(tensors)} tensors")
    return (("optimizer", "; ".join(parts)),) if parts else ()


def where(status: RunStatus) -> tuple[Fact, ...]:
    """On which ranks, and from which step on."""
    if status.world_size > 1:
        return (
            ("on", f"all {status.world_size} ranks, at one step, or on none"),
            ("from", f"a few steps after {words.count(status.step)}, once every rank has agreed"),
        )
    return (("on", "its one process"), ("from", f"the next step after {words.count(status.step)}"))


def obstacle(action: str, status: RunStatus) -> str:
    """Why an action would not go through, "" where nothing is known to stand in its way."""
    if status.state == "ended":
        return "this run has ended: nothing can be applied any more"
    if status.control != "armed":
        return f"control is not armed: {status.control}"
    if action not in status.allow:
        return f"this run does not allow {action}: attach(allow=…) in its script says what may be done"
    if action == "rollback" and not status.snapshots:
        return "no snapshot is held by every rank: attach(snapshots=BYTES) in the script lets them be taken"
    hints = [
        hint for optimizer in status.optimizers for hint in optimizer.hints if hint.startswith(f"{action}:")
    ]
    return hints[0] if hints else ""


def action_doc(action: str) -> str:
    """What the contract says of an action, on one line."""
    return " ".join((ACTIONS[action].__doc__ or action).replace("`", "").split())
