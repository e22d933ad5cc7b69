"""Taking back: what changed nothing, what did harm, and LR cuts whose reason is gone."""

from collections.abc import Sequence

from optwatch.policy.budget import IN_FORCE, action_of, by_policy, inverse, lr_scale
from optwatch.policy.facts import is_back
from optwatch.policy.memory import Memory, Proposal
from optwatch.wire.actions import Clip, Command, ScaleLr, action_args


def undo(memory: Memory, last_lr: float, commands: Sequence[Command], *, send: bool) -> list[Proposal]:
    """Take back what changed nothing, what hurt, and cuts whose reason is gone."""
    proposals = []
    answered = {command.undo_of for command in commands}
    for command in commands:
        if (
            not by_policy(command)
            or command.finding is None  # what was scheduled stays
            or command.state not in IN_FORCE
            or command.id in memory.undone | answered
            or not (why := _why_undo(memory, last_lr, command, commands))
            or (action := inverse(command, commands)) is None
        ):
            continue
        memory.undone.add(command.id)
        proposals.append(
            Proposal(
                action=command.action,
                args=action_args(action),
                why=why,
                finding=command.finding,
                undo_of=command.id,
                send=send,
            )
        )
    return proposals


def _why_undo(memory: Memory, last_lr: float, command: Command, commands: Sequence[Command]) -> str:
    verdict = memory.verdicts.get(command.id)
    rolled_back = any(c.action == "rollback" and c.finding == command.finding for c in commands)
    if command.id in memory.until_back and (verdict == "neutral" or rolled_back):
        # While the LR is up, what it was cut for is not over; and what hurt may be the steps given up.
        return _why_spare(memory, last_lr, command)
    match action_of(command):
        case Clip() if verdict == "neutral":
            return ""  # it is there for the next such gradient
        case ScaleLr(factor=float(factor)) if factor < 1 and verdict == "neutral":
            if memory.usual(lr_scale(commands) / factor) < 1:
                return ""  # back at an LR that is far too high, the run would go wrong again
    if verdict in ("neutral", "hurt"):
        return f"{command.action} at step {command.step} was judged {verdict}: take it back"
    return _why_spare(memory, last_lr, command)


def _why_spare(memory: Memory, last_lr: float, command: Command) -> str:
    """Why an LR cut is needed no more, if it is not."""
    former = memory.until_back.get(command.id)
    if former is not None and is_back(last_lr, former):
        return f"the scheduled LR is back at {last_lr:.3g} (it was {former:.3g}): the cut is needed no more"
    return ""


def why_withdraw(memory: Memory, last_lr: float, command: Command) -> str:
    """Why what was proposed is wanted no more, if it is not."""
    if command.finding is None:
        return ""
    if command.undo_of is None and command.finding not in memory.open | memory.passed:
        return "what it was proposed for is over"
    return _why_spare(memory, last_lr, command)
