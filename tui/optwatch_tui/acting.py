"""What a key press would do to a run, said before it is done. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optwatch.wire.actions import ACTIONS, Command, parse_action
from optwatch.wire.limits import MAX_TEXT
from optwatch.wire.requests import Act, AddMark, Approve, Dismiss, Mode, Request, SetMode, Undo
from optwatch_tui import formats, forms
from optwatch_tui.forms import Field
from optwatch_tui.model import Snapshot

Fact = tuple[str, str]
"""A label and a text."""

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
        lambda asked: action_facts(action, asked.args, snapshot, undo) if isinstance(asked, Act) else (),
        _obstacle(action, snapshot),
        forms.fields(action),
        lambda said: request(forms.read(action, said)),
    )


def preview_any(snapshot: Snapshot) -> tuple[tuple[str, str, str], ...]:
    """Every action: its name, what it does, and why it would not go through."""
    return tuple((name, action_doc(name), _obstacle(name, snapshot)) for name in ACTIONS)


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
        return action_facts(chosen(asked).action, chosen(asked).args, snapshot, undo)

    title = "approve the proposal?" if len(choices) == 1 else "approve which proposal?"
    obstacle = _obstacle(command.action, snapshot)
    return Preview(title, choices, facts, obstacle, over=lambda asked: _answered(chosen(asked)))


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
    facts = (("was applied", applied), *_where(snapshot))
    choice = Choice(f"take back: {formats.command(command)}", Undo(command.run, command.id))
    gone = _as_it_stands(command, snapshot).state not in ("applied", "judged")
    over = "it was taken back meanwhile" if gone else ""
    return Preview(
        "undo?",
        (choice,),
        lambda _asked: facts,
        _obstacle(command.action, snapshot),
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


def action_facts(action: str, args: Mapping[str, Any], snapshot: Snapshot, undo: str) -> tuple[Fact, ...]:
    """What an action does with these arguments, on which ranks, from which step, and the way back."""
    status = snapshot.status
    facts: list[Fact] = []
    if action == "restart":
        which = {"first": "the first moment goes", "second": "the second moment goes"}.get(
            str(args.get("moments", "all")), "the optimizer's moments and its step count go"
        )
        facts.append(("changes", f"{which} to zero, in place; parameters stay"))
        if args.get("warmup"):
            facts.append(("then", f"the LR warms up over {formats.count(int(args['warmup']))} steps"))
        back = "cannot be undone; the moments build up again in about 1/(1-β2) steps"
    elif action == "scale_lr":
        to = 1.0 if args.get("reset") else status.lr_scale * float(args.get("factor") or 1.0)
        over = f", over {formats.count(int(args['ramp']))} steps" if args.get("ramp") else ""
        facts.append(
            ("changes", f"the LR scale: × {formats.setting(status.lr_scale)} → × {formats.setting(to)}{over}")
        )
        if status.lr is not None:
            now, then = status.lr * status.lr_scale, status.lr * to
            facts.append(
                ("learning rate", f"{formats.number(now)} → {formats.number(then)}; the schedule goes on")
            )
        back = f"{undo} restores the former scale"
    elif action == "clip":
        now_clip = "not clipped" if status.clip is None else f"clipped at {formats.setting(status.clip)}"
        to_clip = "not clipped" if args.get("off") else formats.action(action, args)
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
        facts += _rollback_facts(args, snapshot)
        back = "cannot be undone: what is put away is not kept, unless a snapshot is taken first"
    elif action == "stop":
        facts.append(
            ("changes", "nothing by itself: watch.should_stop is True, for a script that looks at it")
        )
        back = "cannot be undone"
    else:
        facts.append(("changes", action_doc(action)))
        back = f"{undo} takes it back where that can be; the daemon says so where not"
    return (*facts, *_groups(snapshot), *_where(snapshot), ("to undo", back))


def _noise_text(args: Mapping[str, Any]) -> str:
    """What noise goes where, and how it fades."""
    if args.get("off"):
        return "no more noise on the gradients"
    std = formats.setting(args.get("std"))
    if args.get("target") == "param":
        return f"Gaussian noise of standard deviation {std} on every parameter, once"
    decay = formats.setting(args.get("decay", 0.55))
    return (
        f"Gaussian noise on every gradient, σ = {std} at first; σ² fades like (1 + t)^-{decay} over t steps"
    )


def _perturb_options(snapshot: Snapshot) -> list[tuple[str, dict[str, Any]]]:
    options: list[tuple[str, dict[str, Any]]] = [
        (f"noise of σ = {std:g} on the gradients, fading", {"std": std}) for std in (0.001, 0.01, 0.1)
    ]
    return [*options, ("no more noise", {"off": True})]


def _rollback_facts(args: Mapping[str, Any], snapshot: Snapshot) -> list[Fact]:
    """What is put back, and how much training goes with it."""
    status, to = snapshot.status, args.get("to_step", "last-good")
    chosen = (
        f"the snapshot of step {formats.count(to)}" if isinstance(to, int) else "the newest good snapshot"
    )
    rng = ", and random generators" if args.get("rng") else ""
    facts = [
        ("changes", f"parameters, optimizer state and buffers{rng}: back to {chosen}"),
        ("stays", "the LR schedule, the data's order, LR scale and clip in force; the step count goes on"),
    ]
    if isinstance(to, int) and to <= status.step:
        facts.append(("lost", f"the training of {formats.count(status.step - to)} steps so far"))
    held = ", ".join(map(formats.count, status.snapshots)) or "none yet"
    return [*facts, ("snapshots", f"held by every rank: {held}")]


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


def action_doc(action: str) -> str:
    """What the contract says of an action, on one line."""
    return " ".join((ACTIONS[action].__doc__ or action).replace("`", "").split())


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


def _groups(snapshot: Snapshot) -> tuple[Fact, ...]:
    """Which parameter groups of which optimizers it is about."""
    parts = []
    for optimizer in snapshot.status.optimizers:
        groups = len(optimizer.groups)
        tensors = sum(group.tensors for group in optimizer.groups)
        many = "s" * (groups != 1)
        parts.append(
            f"{formats.plain(optimizer.kind)}, {groups} group{many}, {formats.count(tensors)} tensors"
        )
    return (("optimizer", "; ".join(parts)),) if parts else ()


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
