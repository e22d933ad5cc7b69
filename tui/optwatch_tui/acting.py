"""What a key press would do to a run, said before it is done. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optwatch.client.effects import Fact, action_doc, effects, obstacle, where
from optwatch.wire.actions import ACTIONS, Command, parse_action
from optwatch.wire.limits import MAX_TEXT
from optwatch.wire.requests import Act, AddMark, Approve, Dismiss, Mode, Request, SetMode, Undo
from optwatch_tui import formats, forms
from optwatch_tui.forms import Field
from optwatch_tui.model import Snapshot

_BY_HAND = "by hand in the terminal UI"


@dataclass(frozen=True)
class Choice:
    """One way to do it, and what the form says for it. `why`: the reason that was given for it."""

    label: str
    request: Request | None
    why: str = ""
    said: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """A question to the user: choices, and the fields of a form where there is something to fill in.

    `read` makes a request of what the form says, or raises a `ValueError` of one sentence; `facts` says
    what a request (None: none yet) would do, a line each; `warning`: why it may not go through; `over`: why
    a request can be made no more, empty where it can.
    """

    title: str
    choices: tuple[Choice, ...]
    facts: Callable[[Request | None], tuple[Fact, ...]]
    warning: str = ""
    fields: tuple[Field, ...] = ()
    read: Callable[[Mapping[str, str]], Request] | None = None
    over: Callable[[Request | None], str] = lambda _asked: ""


def preview(action: str, snapshot: Snapshot, undo: str) -> Preview:
    """The question for an action by hand. `undo`: the key that takes actions back."""
    run = snapshot.status.run

    def request(args: dict[str, Any]) -> Act:
        return Act(run=run, action=action, args=args, why=_BY_HAND)

    known = _OPTIONS.get(action)
    options: Sequence[tuple[str, dict[str, Any] | None]] = known(snapshot) if known else _as_it_is(action)
    return Preview(
        f"{_title(action)}?",
        tuple(
            Choice(label, _request(request, args), said=forms.texts(action, args or {}))
            for label, args in options
        ),
        lambda asked: effects(action, asked.args, snapshot.status, undo) if isinstance(asked, Act) else (),
        obstacle(action, snapshot.status),
        forms.fields(action),
        lambda said: request(forms.read(action, said)),
    )


def preview_any(snapshot: Snapshot) -> tuple[tuple[str, str, str], ...]:
    """Every action: its name, what it does, and why it would not go through."""
    return tuple((name, action_doc(name), obstacle(name, snapshot.status)) for name in ACTIONS)


def preview_approve(command: Command, snapshot: Snapshot, undo: str) -> Preview:
    """The question for a proposal; the other proposals can be chosen instead."""
    proposals = (command, *(other for other in snapshot.proposals if other.id != command.id))
    choices = tuple(
        Choice(formats.command(each), Approve(each.run, each.id), _why(each, snapshot)) for each in proposals
    )

    def chosen(asked: Request | None) -> Command:
        wanted = asked.command if isinstance(asked, Approve) else command.id
        return _as_it_stands(next((each for each in proposals if each.id == wanted), command), snapshot)

    def facts(asked: Request | None) -> tuple[Fact, ...]:
        return effects(chosen(asked).action, chosen(asked).args, snapshot.status, undo)

    title = "approve the proposal?" if len(choices) == 1 else "approve which proposal?"
    return Preview(
        title,
        choices,
        facts,
        obstacle(command.action, snapshot.status),
        over=lambda asked: _answered(chosen(asked)),
    )


def preview_dismiss(command: Command, snapshot: Snapshot) -> Preview:
    """The question for turning a proposal down, with a reason that stays in its record."""
    reasons = ("", "false alarm", "expected, a planned change", "will be handled in the script")
    choices = tuple(
        Choice(reason or "no reason given", Dismiss(command.run, command.id, reason), said={"reason": reason})
        for reason in reasons
    )
    facts = (
        ("proposal", formats.command(command)),
        ("why", _why(command, snapshot) or "-"),
        ("changes", "nothing; the proposal is kept as dismissed, and not made again for this finding"),
    )
    return Preview(
        "dismiss the proposal?",
        choices,
        lambda _asked: facts,
        fields=(Field("reason", hint="why, in your own words"),),
        read=lambda said: Dismiss(command.run, command.id, said["reason"].strip()[:MAX_TEXT]),
        over=lambda _asked: _answered(_as_it_stands(command, snapshot)),
    )


def preview_undo(command: Command, snapshot: Snapshot) -> Preview:
    """The question for taking an applied command back."""
    applied = "-" if command.step is None else f"at step {formats.count(command.step)}"
    facts = (("was applied", applied), *where(snapshot.status))
    choice = Choice(f"take back: {formats.command(command)}", Undo(command.run, command.id))
    gone = _as_it_stands(command, snapshot).state not in ("applied", "judged")
    over = "it was taken back meanwhile" if gone else ""
    return Preview(
        "undo?",
        (choice,),
        lambda _asked: facts,
        obstacle(command.action, snapshot.status),
        over=lambda _asked: over,
    )


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
    facts = (("now", f"{now}: {meaning[now]}"), ("by hand", "works in every mode"))
    return Preview("change the mode?", choices, lambda _asked: facts)


def preview_mark(snapshot: Snapshot) -> Preview:
    """The question for a mark on the time axis."""
    status = snapshot.status

    def read(said: Mapping[str, str]) -> AddMark:
        text = said["text"].strip()
        if not text:
            raise ValueError("a mark needs a text, such as: curriculum stage 2")
        return AddMark(status.run, text[:MAX_TEXT])

    facts = (
        ("at", f"the newest step, {formats.count(status.step)}"),
        ("changes", "nothing in the training; a planned change: the detectors begin a new segment"),
    )
    empty = Choice("a mark on every chart, with this text:", None, said={"text": ""})
    return Preview(
        "mark this step?",
        (empty,),
        lambda _asked: facts,
        fields=(Field("text", hint="what changes here"),),
        read=read,
    )


_TITLES = {
    "restart": "restart the optimizer",
    "scale_lr": "scale the learning rate",
    "clip": "clip the gradient norm",
    "perturb": "add noise to the gradients",
    "snapshot": "take a snapshot",
    "rollback": "roll back to a snapshot",
    "stop": "ask the script to stop",
}


def _title(action: str) -> str:
    return _TITLES.get(action, action.replace("_", " "))


def _request(request: Callable[[dict[str, Any]], Act], args: dict[str, Any] | None) -> Act | None:
    return None if args is None else request(args)


def _as_it_stands(command: Command, snapshot: Snapshot) -> Command:
    """The same command, as the newest snapshot has it."""
    return next((each for each in snapshot.commands if each.id == command.id), command)


def _answered(command: Command) -> str:
    """Why a proposal can be answered no more; empty where it still can."""
    if command.state == "proposed":
        return ""
    reason = f": {command.reason}" if command.reason else ""
    return f"this proposal is no longer open, it is {command.state}{reason}"


def _why(command: Command, snapshot: Snapshot) -> str:
    """The reason of a proposal, with the finding that it is for."""
    finding = next((f for f in snapshot.findings if f.id == command.finding), None)
    if finding is None or finding.kind in command.why:
        return command.why
    return f"{finding.kind} since step {formats.count(finding.onset_step)}: {command.why}"


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


def _perturb_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    options: list[tuple[str, dict[str, Any]]] = [
        (f"noise of σ = {std:g} on the gradients, fading", {"std": std}) for std in (0.001, 0.01, 0.1)
    ]
    return [*options, ("no more noise", {"off": True})]


def _rollback_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    newest = reversed(snapshot.status.snapshots)
    return [
        ("to the newest snapshot before what is found", {}),
        *((f"to the snapshot of step {formats.count(step)}", {"to_step": step}) for step in newest),
    ]


_OPTIONS: dict[str, Callable[[Snapshot], list[tuple[str, dict[str, Any]]]]] = {
    "restart": _restart_options,
    "scale_lr": _lr_options,
    "clip": _clip_options,
    "perturb": _perturb_options,
    "rollback": _rollback_options,
}
"""Settings that are offered first; others are typed."""


def _as_it_is(action: str) -> list[tuple[str, dict[str, Any] | None]]:
    """An action without prepared settings: as it is, where it needs no argument."""
    try:
        parse_action(action, {})
    except ValueError:
        return [("with these arguments:", None)]
    return [("as it is", {})]
