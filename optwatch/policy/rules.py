"""Rules: which finding, in which circumstances, is answered by which actions; and the limits on all."""

from typing import Annotated, Any, Literal

import msgspec

from optwatch.policy.facts import Facts, LossFact, LrFact
from optwatch.wire.actions import Action, parse_action
from optwatch.wire.findings import ALARMS, CauseName, Finding, Kind

Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Worth = Literal["info", "warning", "critical"]
ActionName = Literal["restart", "scale_lr", "clip", "snapshot", "rollback", "perturb", "stop"]


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """True where everything that is given holds. A list holds if one of its items does.

    Conditions compose: `all`, `any` and `none` hold further conditions.
    """

    kind: tuple[Kind, ...] = ()
    """The finding is of one of these kinds."""
    severity: tuple[Worth, ...] = ()
    """It has one of these severities. What is an info alone is answered only by a rule whose `when` names it
    here itself."""
    cause: tuple[CauseName, ...] = ()
    """One of these causes is held likely, at `cause_weight` or more."""
    cause_weight: Share = 0.3
    """The least weight of a likely cause."""
    lr: tuple[LrFact, ...] = ()
    """What the learning rate did about the onset. Where it names "unusual", a cut of such an LR brings it to
    a third of the highest usual one, whatever its factor says."""
    loss: tuple[LossFact, ...] = ()
    """Where the loss is now."""
    from_start: Count | None = None
    """It began in the first so many steps of the run."""
    within: Count | None = None
    """At most so many steps since the onset."""
    again: Count | None = None
    """It is at least the so-many-th finding of its kind that began within 1,000 steps."""
    can: tuple[ActionName, ...] = ()
    """One of these actions is allowed and possible now: a rollback needs a snapshot from before."""
    all: tuple["Condition", ...] = ()
    """Each of these conditions holds."""
    any: tuple["Condition", ...] = ()
    """One of these holds."""
    none: tuple["Condition", ...] = ()
    """None of these holds."""

    def holds(self, facts: Facts) -> bool:
        """Whether the facts are as this condition asks."""
        finding = facts.finding
        likely = {cause.cause for cause in finding.causes if cause.weight >= self.cause_weight}
        return (
            (not self.kind or finding.kind in self.kind)
            and (not self.severity or finding.severity in self.severity)
            and (not self.cause or not likely.isdisjoint(self.cause))
            and (not self.lr or facts.lr in self.lr)
            and (not self.loss or facts.loss in self.loss)
            and (self.from_start is None or facts.from_start < self.from_start)
            and (self.within is None or facts.age <= self.within)
            and (self.again is None or facts.again >= self.again)
            and (not self.can or not facts.can.isdisjoint(self.can))
            and all(condition.holds(facts) for condition in self.all)
            and (not self.any or any(condition.holds(facts) for condition in self.any))
            and not any(condition.holds(facts) for condition in self.none)
        )


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first rule in order that applies is the one that acts."""

    name: str
    """What it is called; no two are called the same."""
    when: Condition
    """The condition under which it applies."""
    do: Annotated[tuple[Action, ...], msgspec.Meta(min_length=1)]
    """The actions, in order."""
    why: str
    """The reason that is shown and kept with each action."""
    times: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How often it may act in one trouble: an intervention that helped ends it."""
    until: Literal["lr_back"] | None = None
    """A cut brings an LR that has risen back to what it was, whatever its factor says, and is taken back as
    soon as the scheduled LR is there by itself."""

    def concerns(self, finding: Finding) -> bool:
        """Whether it may be for this finding, whatever the other facts are."""
        kinds, severity = self.when.kind, finding.severity
        return (severity in ALARMS or severity in self.when.severity) and (not kinds or finding.kind in kinds)

    def answers(self, facts: Facts) -> bool:
        """Whether it is for this finding."""
        return self.concerns(facts.finding) and self.when.holds(facts)


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An action that is planned, not an answer to a finding: every so many steps, or on a plateau.

    It waits while an intervention is under way, keeps to the limits, and is judged but never taken back.
    """

    action: str
    """What to do, such as "restart"."""
    args: dict[str, Any] = {}
    """The action's arguments, such as { warmup = 100 }."""
    every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] | None = None
    """At the steps that are multiples of this."""
    growth: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.0
    """Each period is so many times as long as the one before (T_mult of SGDR, Loshchilov and Hutter 2017)."""
    on: Literal["plateau"] | None = None
    """When `of` has not become lower for `patience` values."""
    of: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "loss"
    """The name of a scalar that the run logs, such as "val_loss"."""
    patience: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 10
    """Logged values without one that is lower by at least 0.01 %, as torch's ReduceLROnPlateau counts."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """At most so many times in a run; without it, without end."""

    def __post_init__(self) -> None:
        if (self.every is None) == (self.on is None):
            raise ValueError('a schedule needs either every (steps) or on = "plateau"')
        if self.every is None and self.growth != 1:
            raise ValueError("growth lengthens the period of every; with on there is none")
        parse_action(self.action, self.args)

    @property
    def do(self) -> Action:
        """The action."""
        return parse_action(self.action, self.args)

    @property
    def why(self) -> str:
        """The reason that is shown and kept with each action."""
        if self.every is not None:
            grown = f", each period {self.growth:g} times as long as the last" if self.growth > 1 else ""
            return f"scheduled every {self.every} steps{grown}"
        return f"scheduled: {self.of} has not become lower for {self.patience} values"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What no rule may overstep."""

    cooldown: Annotated[int, msgspec.Meta(ge=1)] = 200
    """Steps between two interventions, or twice the detector's window if that is longer."""
    lr_cuts: Count = 3
    """LR cuts in a run, those that were taken back included."""
    lr_floor: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01
    """The LR is never brought under this share of what the schedule says."""
    rollbacks: Count = 2
    """Rollbacks in a run."""
    mark_margin: Count = 50
    """Steps around a mark within which nothing is done: the change there was planned."""
    trial: Annotated[int, msgspec.Meta(ge=20)] = 200
    """Steps after which an action is judged."""
    failures: Annotated[int, msgspec.Meta(ge=1)] = 2
    """After so many interventions in a row that did not help, act no more."""


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy: its limits, its rules in the order in which they are tried, and what is planned."""

    limits: Limits = Limits()
    rule: tuple[Rule, ...] = ()
    schedule: tuple[Schedule, ...] = ()
