"""Optuna: prune the trials in which the daemon finds something critical.

    from optwatch_agent.optuna import FindingPruner

    pruner = FindingPruner(MedianPruner())
    study = optuna.create_study(pruner=pruner)

    def objective(trial):
        …
        pruner.follow(trial, optwatch.attach(optimizer))
        for step in range(steps):
            …
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned

It takes a daemon: without one nothing is found, and the other pruner decides alone.
"""

import weakref

from optuna import Study, Trial
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding, Kind, Severity
from optwatch_agent.mirrors import finding_line
from optwatch_agent.watch import Watch


class FindingPruner(BasePruner):
    """Prunes a trial with a finding of one of these severities and kinds, or where another pruner does.

    The finding is kept with the trial, as its user attribute `optwatch`.

    Args:
        pruner: asked where nothing was found, by default none. Of a HyperbandPruner in here, samplers do not
            know.
        severities: of the findings that end a trial.
        kinds: of the findings that end a trial, by default any.
    """

    def __init__(
        self,
        pruner: BasePruner | None = None,
        severities: tuple[Severity, ...] = ("critical",),
        kinds: tuple[Kind, ...] | None = None,
    ) -> None:
        self._pruner = pruner or NopPruner()
        self._severities = frozenset(severities)
        self._kinds = None if kinds is None else frozenset(kinds)
        self._trials: dict[int, weakref.ref[Trial]] = {}
        self._reasons: dict[int, str] = {}

    def follow(self, trial: Trial, watch: Watch) -> None:
        """Let what is found in a training decide on its trial."""
        number = trial.number
        self._trials[number] = weakref.ref(trial)

        def hear(item: Finding | Command) -> None:
            if (
                isinstance(item, Finding)
                and item.severity in self._severities
                and (self._kinds is None or item.kind in self._kinds)
            ):
                self._reasons.setdefault(number, finding_line(item))

        watch.mirror(hear)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to end, as `Trial.should_prune` asks."""
        reason = self._reasons.get(trial.number)
        if reason is None:
            return bool(self._pruner.prune(study, trial))
        if (own := self._trials[trial.number]()) is not None:
            own.set_user_attr("optwatch", reason)
        return True
