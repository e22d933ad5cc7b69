"""Actions a daemon may ask of the agents, their arguments, and the life of a command."""

import math
from collections.abc import Iterable
from statistics import median
from typing import Annotated, Any, Literal, get_args

import msgspec

from optwatch.wire.limits import MAX_TEXT

AUTO_OVER = 200
AUTO_LEAST = 10
"""Measured gradient norms that `clip --max-norm auto` looks back on, and fewest that it needs."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
Steps = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
GlobalStep = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Restart(msgspec.Struct, frozen=True, tag="restart", tag_field="action", forbid_unknown_fields=True):
    """Zero the optimizer's moments and its step, in place; `warmup` steps of linear LR warm-up follow."""

    moments: Literal["all", "first", "second"] = "all"
    warmup: Steps = 0


class ScaleLr(msgspec.Struct, frozen=True, tag="scale_lr", tag_field="action", forbid_unknown_fields=True):
    """Multiply the LR scale in force by `factor`, reached over `ramp` steps; `reset` returns to 1."""

    factor: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    ramp: Steps = 0
    reset: bool = False

    def __post_init__(self) -> None:
        if (self.factor is None) == (not self.reset):
            raise ValueError("scale_lr needs either a factor (such as 0.5) or reset")


class Clip(msgspec.Struct, frozen=True, tag="clip", tag_field="action", forbid_unknown_fields=True):
    """Clip the global gradient norm to `max_norm` from the step on, or stop doing so with `off`."""

    max_norm: Positive | Literal["auto"] | None = None
    """ "auto": exp(median + 4 MAD) of the logarithms of the last norms, which the limit then follows; each
    counts as it was after the clip."""
    adapt: bool = False
    """Let the limit follow what is usual, from this `max_norm` on; "auto" does."""
    off: bool = False

    def __post_init__(self) -> None:
        if (self.max_norm is None) == (not self.off):
            raise ValueError('clip needs either a max_norm (a number or "auto") or off')
        if self.adapt and self.off:
            raise ValueError("clip needs a max_norm to adapt, not off")


class Perturb(msgspec.Struct, frozen=True, tag="perturb", tag_field="action", forbid_unknown_fields=True):
    """Add Gaussian noise to the gradients from the step on, after any clip, or end that with `off`. Its
    standard deviation decays: `std` / (1 + t)^(`decay` / 2) after t steps (Neelakantan et al. 2015)."""

    target: Literal["grad", "param"] = "grad"
    """ "param": the parameters, once."""
    std: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    decay: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.55
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    """Of generators that are the noise's own; drawn where none is given."""
    off: bool = False

    def __post_init__(self) -> None:
        if (self.std is None) == (not self.off):
            raise ValueError("perturb needs either a std (such as 0.01) or off")
        if self.off and self.target == "param":
            raise ValueError("perturb needs no off for parameters: they are perturbed once")


class Stop(msgspec.Struct, frozen=True, tag="stop", tag_field="action", forbid_unknown_fields=True):
    """Ask the script to end: `Watch.should_stop` is True from the step on, on every rank. It looks or not."""


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot", tag_field="action", forbid_unknown_fields=True):
    """Keep a copy of parameters, optimizer state and buffers in the host's memory, to roll back to."""


class Rollback(msgspec.Struct, frozen=True, tag="rollback", tag_field="action", forbid_unknown_fields=True):
    """Put parameters, optimizer state and buffers back to a snapshot, after the update of a step. The LR
    schedule, the data and what commands have in force go on."""

    to_step: GlobalStep | Literal["last-good"] = "last-good"
    """The step after which the snapshot was taken; "last-good": the newest one before what is found."""
    rng: bool = False
    """Put the random generators of torch, numpy and Python back, too."""


Action = Restart | ScaleLr | Clip | Snapshot | Rollback | Perturb | Stop
ACTIONS: dict[
    str,
    type[Restart] | type[ScaleLr] | type[Clip] | type[Snapshot] | type[Rollback] | type[Perturb] | type[Stop],
] = {
    "restart": Restart,
    "scale_lr": ScaleLr,
    "clip": Clip,
    "snapshot": Snapshot,
    "rollback": Rollback,
    "perturb": Perturb,
    "stop": Stop,
}

CommandState = Literal[
    "proposed",
    "sent",
    "scheduled",
    "applied",
    "judged",
    "dismissed",
    "refused",
    "expired",
    "failed",
    "undone",
]
COMMAND_STATES: tuple[CommandState, ...] = get_args(CommandState)
OPEN_STATES: frozenset[CommandState] = frozenset({"proposed", "sent", "scheduled"})
"""States from which a command can still be applied."""

Verdict = Literal["helped", "neutral", "hurt", "unclear"]


class Outcome(msgspec.Struct, frozen=True):
    """What an applied command did to the run."""

    verdict: Verdict
    numbers: dict[str, float]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command and its audit trail. `step` is the global_step it was applied at, None before."""

    id: str
    run: str
    action: str
    args: dict[str, Any]
    state: CommandState
    asked_by: str
    why: str
    asked_at: float
    finding: int | None = None
    step: int | None = None
    ranks_applied: tuple[int, ...] = ()
    outcome: Outcome | None = None
    reason: str = ""
    """Why it was refused, dismissed, failed or expired, or what it waits for."""
    undo_of: str | None = None
    due: int | None = None
    """The global_step S that the ranks vote on applying it before, None where there is no vote."""
    votes: tuple[int, ...] = ()
    """The ranks known to have voted for it, in the vote that is under way or was the last."""
    replicas_agree: bool | None = None
    """Whether the replicas were bit for bit the same after the step at which it was applied; None where
    that was not compared, as with one rank."""
    world_size: int | None = None
    """How many ranks have to apply it, None before it was proposed to them."""


def usual_norm(norms: Iterable[float]) -> float:
    """exp(median + 4 MAD) of the logarithms of gradient norms, for `clip --max-norm auto`: far above what is
    usual, below a spike. Those that are 0 or non-finite do not count; some other has to be there."""
    logs = [math.log(norm) for norm in norms if norm > 0 and math.isfinite(norm)]
    middle = median(logs)
    return math.exp(middle + 4 * median(abs(value - middle) for value in logs))


def parse_action(name: str, args: dict[str, Any]) -> Action:
    """Check an action's name and arguments.

    Raises:
        ValueError: one sentence that names the unknown action or the argument that is wrong.
    """
    if name not in ACTIONS:
        raise ValueError(f"unknown action {name!r}: it is one of {', '.join(ACTIONS)}")
    try:
        return msgspec.convert(args, ACTIONS[name])
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(_in_words(name, str(error))[:MAX_TEXT]) from None


def _in_words(name: str, problem: str) -> str:
    """What msgspec says of an argument, "Expected `int` >= 0 - at `$.warmup`", as a sentence."""
    text, _, place = problem.partition(" - at `$.")
    text = text.replace("`", "")
    if place:
        field = place.rstrip("`")
        return f"{name}: {field} is wrong: {text[0].lower()}{text[1:]}"
    return text if text.startswith(f"{name} needs") else f"{name}: {text}"


def action_args(action: Action) -> dict[str, Any]:
    """The arguments of an action as plain values, without those at their default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(type(action))}
    return {
        field: value
        for field in action.__struct_fields__
        if (value := getattr(action, field)) != defaults[field]
    }
