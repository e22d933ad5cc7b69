"""What a run's commands add up to: LR cuts, the LR scale in force, and how to take one back."""

from collections.abc import Iterable, Sequence

from optwatch.wire.actions import (
    OPEN_STATES,
    Action,
    Clip,
    Command,
    Perturb,
    Restart,
    Rollback,
    ScaleLr,
    Snapshot,
    Stop,
    parse_action,
)

ASKED_BY = "policy"
"""`Command.asked_by` of what the policy proposed; ", approved by NAME" may follow."""
IN_FORCE = frozenset({"applied", "judged"})
"""States of a command whose effect lasts."""


def action_of(command: Command) -> Action | None:
    """A command's action, None where it is one that this version does not know."""
    try:
        return parse_action(command.action, command.args)
    except ValueError:
        return None


def by_policy(command: Command) -> bool:
    """Whether the policy asked for a command, and not to undo another."""
    return command.undo_of is None and command.asked_by.partition(",")[0] == ASKED_BY


def is_cut(action: Action | None) -> bool:
    """Whether an action lowers the LR."""
    return isinstance(action, ScaleLr) and action.factor is not None and action.factor < 1


def lr_cuts(commands: Iterable[Command]) -> int:
    """LR cuts that the policy asked for: those that wait, those in force, and those taken back."""
    return sum(_is_spent(command) and is_cut(action_of(command)) for command in commands)


def rollbacks(commands: Iterable[Command]) -> int:
    """Rollbacks that the policy asked for: those that wait, and those done."""
    return sum(_is_spent(command) and command.action == "rollback" for command in commands)


def _is_spent(command: Command) -> bool:
    """Whether the policy asked for a command that was or may yet be done."""
    return by_policy(command) and (command.step is not None or command.state in OPEN_STATES)


def lr_scale(commands: Iterable[Command]) -> float:
    """The LR scale in force, taking cuts that still wait as if they were applied."""
    scale = 1.0
    for command in sorted(commands, key=lambda c: (c.step is None, c.step or 0)):
        action = action_of(command)
        if command.undo_of is not None or not isinstance(action, ScaleLr):
            continue
        waits = command.state in OPEN_STATES and is_cut(action)
        if waits or command.state in IN_FORCE:
            scale = 1.0 if action.factor is None else scale * action.factor
    return scale


def inverse(command: Command, commands: Sequence[Command]) -> Action | None:
    """The action that takes an applied command back; None where nothing can.

    A scale is divided out again; a clip gives way to the one that was in force before, or to none.
    """
    action = action_of(command)
    match action:
        case ScaleLr(factor=float(factor)) if factor >= 0.01:
            return ScaleLr(factor=1 / factor)
        case Clip(off=False):
            return _former_clip(command, commands)
        case Perturb(target="grad", off=False):
            return Perturb(off=True)
        case Restart() | Perturb() | Snapshot() | Rollback() | Stop() | None:
            return None
    return None


def _former_clip(command: Command, commands: Sequence[Command]) -> Clip:
    former = Clip(off=True)
    for other in sorted(commands, key=lambda c: c.step or 0):
        if other.id == command.id:
            break
        action = action_of(other)
        if isinstance(action, Clip) and other.state in IN_FORCE and other.undo_of is None:
            former = action
    return former
