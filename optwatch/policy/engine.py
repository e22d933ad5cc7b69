"""The policy of one run: from findings to proposals, within limits, and what came of them.

Pure: it is told points, findings and commands, and says what it wants; it never reads a clock.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from optwatch.policy.budget import (
    action_of,
    by_policy,
    is_cut,
    lr_cuts,
    lr_scale,
    rollbacks,
)
from optwatch.policy.facts import Facts, gather
from optwatch.policy.history import KEPT, History
from optwatch.policy.judge import judge
from optwatch.policy.load import DEFAULT
from optwatch.policy.memory import Intervention, Memory, Proposal
from optwatch.policy.rules import Rule, Rules
from optwatch.policy.undoing import undo, why_withdraw
from optwatch.series.points import Column, Points
from optwatch.wire.actions import (
    OPEN_STATES,
    Action,
    Command,
    Outcome,
    Rollback,
    ScaleLr,
    action_args,
)
from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.requests import Mode

WORTH = frozenset({*ALARMS, "info"})
"""Severities of findings that a rule may answer; "watch" is never acted on."""


MARGIN = 3.0
"""A cut of an unusual LR brings it so far under the highest usual one: that is for the best of set-ups."""


class Engine:
    """The policy of one run. Feed it with every change in order; `state` restores it exactly.

    At any time at most one intervention is under way: from its proposal until its commands are judged,
    or turned down.
    """

    def __init__(self, mode: Mode, rules: Rules = DEFAULT) -> None:
        self.mode: Mode = mode
        self.rules = rules
        self._history = History()
        self._memory = Memory()
        self._outcomes: list[tuple[str, Outcome]] = []

    @property
    def stopped(self) -> str:
        """Why it acts no more in this run; empty while it may."""
        return self._memory.stopped

    def update(
        self,
        points: Points,
        findings: Sequence[Finding],
        commands: Sequence[Command],
        allow: Sequence[str],
    ) -> list[Proposal]:
        """Take what is new, and say what to do.

        Args:
            points: The run's next points, in order.
            findings: Those that are new or changed.
            commands: All of the run's so far.
            allow: The actions that the run's agents take.

        Returns:
            What to propose or send now; with the mode observe nothing.
        """
        self._follow_findings(findings)
        self._follow_commands(commands)
        self._memory.plans.follow(self.rules.schedule, points)
        for part in _parts(points, KEPT // 4):
            self._history.append(part)
            self._judge_due(commands)
        self._memory.passed = {
            id: finding
            for id, finding in self._memory.passed.items()
            if finding.step + self.rules.limits.cooldown > self._history.now
        }
        self._close_current(commands)
        if self.mode == "observe":
            for schedule in self._memory.plans.due(self.rules.schedule, self._history.now):
                self._memory.plans.let_go(schedule, self._history.now)
            return []
        if proposals := undo(self._memory, self._history.last_lr, commands, send=self.mode == "auto"):
            return proposals
        return self._intervene(commands, allow) or self._follow_schedule(commands, allow)

    def outcomes(self) -> list[tuple[str, Outcome]]:
        """The verdicts that became due since the last call, by command id."""
        due, self._outcomes = self._outcomes, []
        return due

    def withdrawals(self, commands: Sequence[Command]) -> list[tuple[str, str]]:
        """Own proposals that wait for approval although their reason is gone: command id, and why."""
        memory, lr = self._memory, self._history.last_lr
        return [
            (command.id, why)
            for command in commands
            if command.state == "proposed"
            and by_policy(command)
            and (why := why_withdraw(memory, lr, command))
        ]

    def mark(self, step: int) -> None:
        """A planned change at `step`: nothing is done around it, and what was found before is past."""
        self._memory.marks = [*self._memory.marks[-15:], step]
        self._memory.dealt |= self._memory.open.keys()

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs, as plain values for msgpack."""
        return {"history": self._history.state(), "memory": msgspec.to_builtins(self._memory)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. The mode and the rules are the caller's.

        Raises:
            ValueError: it is not the state of a policy.
        """
        try:
            self._memory = msgspec.convert(state["memory"], Memory)
            self._history.restore(state["history"])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"not the state of a policy: {error}") from None
        self._outcomes = []

    @property
    def _alarmed(self) -> bool:
        """Whether an alarm is open."""
        return any(finding.severity in ALARMS for finding in self._memory.open.values())

    # --- what happened ----------------------------------------------------------------------------------

    def _follow_findings(self, findings: Sequence[Finding]) -> None:
        memory = self._memory
        for finding in findings:
            over = finding.resolved_step is not None
            if finding.kind == "converged":
                (memory.converged.discard if over else memory.converged.add)(finding.id)
            former = memory.open.pop(finding.id, None)
            if over and former is None and finding.severity == "info":
                memory.passed[finding.id] = finding
                self._count(finding)
            if over or finding.severity not in WORTH:
                memory.dealt.discard(finding.id)
                continue
            memory.open[finding.id] = finding
            if former is None:
                self._count(finding)
            if former is not None and former.severity != finding.severity in ALARMS:
                worse = finding.severity == "critical" or former.severity not in ALARMS
                memory.dealt -= {finding.id} if worse else set()

    def _count(self, finding: Finding) -> None:
        former = self._memory.onsets.get(finding.kind, [])
        self._memory.onsets[finding.kind] = [*former[-15:], finding.onset_step]

    def _follow_commands(self, commands: Sequence[Command]) -> None:
        memory, current = self._memory, self._memory.current
        for command in commands:
            if command.undo_of is not None:
                continue
            if (
                current is not None
                and by_policy(command)
                and command.finding == current.finding
                and command.id not in current.commands
                and command.id not in memory.verdicts
                and len(current.commands) < current.actions
            ):
                current.commands.append(command.id)
                rule = next((rule for rule in self.rules.rule if rule.name == current.rule), None)
                if rule and rule.until and is_cut(action_of(command)):
                    memory.until_back[command.id] = current.former_lr
            on_trial = command.state == "applied" and command.step is not None
            if on_trial and command.id not in memory.verdicts and command.step is not None:
                memory.trials.setdefault(command.id, command.step)
            elif command.state == "undone":
                memory.trials.pop(command.id, None)

    def _judge_due(self, commands: Sequence[Command]) -> None:
        memory, trial = self._memory, self.rules.limits.trial
        for command, applied in sorted(memory.trials.items()):
            if self._history.now < applied + trial:
                continue
            del memory.trials[command]
            current = memory.current
            mine = current is not None and command in current.commands
            group = set(current.commands) if current and mine else {command}
            if any(
                other.id not in group
                and other.undo_of not in group
                and other.step is not None
                and applied < other.step < applied + trial
                for other in commands
            ):
                outcome = Outcome("unclear", {"other_commands": 1.0})
            else:
                onset = min(current.onset, applied) if current and mine else applied
                outcome = judge(self._history, onset, applied, applied + trial)
            memory.verdicts[command] = outcome.verdict
            self._outcomes.append((command, outcome))
            if current and mine:
                current.verdicts.append(outcome.verdict)

    def _close_current(self, commands: Sequence[Command]) -> None:
        """End the intervention under way when none of its commands can tell more."""
        memory, current = self._memory, self._memory.current
        if current is None:
            return
        if not current.commands:
            # The proposal was not taken up: forget it when its time is over.
            if self._history.now > current.asked + self.rules.limits.cooldown:
                memory.current = None
            return
        states = {command.id: command.state for command in commands}
        if any(states.get(id) in OPEN_STATES or id in memory.trials for id in current.commands):
            return
        memory.current = None
        if "helped" in current.verdicts:
            memory.failures, memory.used = 0, {}
            memory.dealt |= memory.open.keys()
        elif current.verdicts:
            memory.failures += "unclear" not in current.verdicts and self._alarmed
            memory.dealt.clear()
        elif any(states.get(id) in ("expired", "failed", "refused") for id in current.commands):
            memory.dealt.discard(current.finding)
            memory.asked = None  # nothing was done that needs time to work
        if memory.failures >= self.rules.limits.failures:
            memory.stopped = (
                f"{memory.failures} interventions in a row did not help: the cause is likely the "
                "architecture or the data; the policy acts no more in this run"
            )

    # --- what to do -------------------------------------------------------------------------------------

    def _intervene(self, commands: Sequence[Command], allow: Sequence[str]) -> list[Proposal]:
        """Answer the most urgent open finding that a rule has an answer to."""
        memory = self._memory
        if (
            memory.stopped
            or memory.current is not None
            or memory.converged
            or self._near_mark(self._history.now)
            or any(by_policy(c) and c.state in OPEN_STATES for c in commands)
        ):
            return []
        waiting = [
            finding
            for id, finding in (memory.open | memory.passed).items()
            if id not in memory.dealt and any(rule.concerns(finding) for rule in self.rules.rule)
        ]
        if not waiting:  # as nearly always: the facts are not gathered for nothing
            return []
        urgency = ("critical", "warning", "info")
        waiting.sort(key=lambda each: (urgency.index(each.severity), each.onset_step, each.id))
        usual = memory.usual(lr_scale(commands))
        for finding in waiting:
            if self._cooling(finding, commands) or self._near_mark(finding.onset_step):
                continue
            facts = gather(self._history, finding, memory.onsets.get(finding.kind, ()), allow, usual)
            for rule in self.rules.rule:
                if memory.used.get(rule.name, 0) >= rule.times or not rule.answers(facts):
                    continue
                wanted = [self._to_known(action, rule, facts) for action in rule.do]
                if actions := self._affordable(wanted, commands, allow):
                    return self._propose(facts, rule, actions)
        return []

    def _to_known(self, action: Action, rule: Rule, facts: Facts) -> Action:
        """A cut for an LR that has risen brings it back to what it was; one of a rule for unusual LRs, well
        into the range in which the optimizer is used."""
        if not isinstance(action, ScaleLr):
            return action
        if rule.until is not None and facts.lr == "risen":
            factor = facts.former_lr / self._history.last_lr
        elif facts.lr == "unusual" and "unusual" in rule.when.lr:
            factor = facts.usual / MARGIN
        else:
            return action
        least = self.rules.limits.lr_floor
        return ScaleLr(factor=min(max(factor, least), 1.0), ramp=action.ramp) if factor < 1 else action

    def _propose(self, facts: Facts, rule: Rule, actions: list[Action]) -> list[Proposal]:
        memory, finding = self._memory, facts.finding
        memory.used[rule.name] = memory.used.get(rule.name, 0) + 1
        memory.asked = self._history.now
        memory.dealt |= memory.open.keys() | memory.passed.keys()
        memory.current = Intervention(
            rule=rule.name,
            finding=finding.id,
            onset=finding.onset_step,
            asked=self._history.now,
            former_lr=facts.former_lr,
            actions=len(actions),
        )
        return [
            Proposal(
                action=_name(action),
                args=action_args(action),
                why=f"{finding.kind} at step {finding.onset_step}: {rule.why}",
                finding=finding.id,
                send=self.mode == "auto",
            )
            for action in actions
        ]

    def _follow_schedule(self, commands: Sequence[Command], allow: Sequence[str]) -> list[Proposal]:
        """The first scheduled action that is due, unless the run is in other hands just now."""
        memory, now = self._memory, self._history.now
        if (
            memory.stopped
            or memory.current is not None
            or any(by_policy(command) and command.state in OPEN_STATES for command in commands)
        ):
            return []
        for schedule in memory.plans.due(self.rules.schedule, now):
            if not (actions := self._affordable((schedule.do,), commands, allow)):
                memory.plans.let_go(schedule, now)
                continue
            memory.plans.acted(schedule, now)
            memory.asked = now
            return [
                Proposal(
                    action=_name(action),
                    args=action_args(action),
                    why=schedule.why,
                    send=self.mode == "auto",
                )
                for action in actions
            ]
        return []

    def _affordable(
        self, wanted: Sequence[Action], commands: Sequence[Command], allow: Sequence[str]
    ) -> list[Action]:
        """Those of some actions that the agents take and the limits leave room for."""
        limits, actions = self.rules.limits, []
        cuts, scale = lr_cuts(commands), lr_scale(commands)
        for action in wanted:
            if _name(action) not in allow and "all" not in allow:
                continue
            if is_cut(action) and isinstance(action, ScaleLr) and action.factor is not None:
                # The tolerance lets two cuts of 0.1 reach a floor of 0.01.
                if cuts >= limits.lr_cuts or scale * action.factor < limits.lr_floor * (1 - 1e-9):
                    continue
                cuts, scale = cuts + 1, scale * action.factor
            if isinstance(action, Rollback) and rollbacks(commands) >= limits.rollbacks:
                continue
            actions.append(action)
        return actions

    def _cooling(self, finding: Finding, commands: Sequence[Command]) -> bool:
        """Whether too little time has passed since the last action, whoever asked for it."""
        window = finding.evidence.get("window", 0)
        pause = max(self.rules.limits.cooldown, 2 * int(window) if isinstance(window, int | float) else 0)
        last = [c.step for c in commands if c.step is not None and c.undo_of is None]
        if self._memory.asked is not None:
            last.append(self._memory.asked)
        return bool(last) and self._history.now < max(last) + pause

    def _near_mark(self, step: int) -> bool:
        margin = self.rules.limits.mark_margin
        return any(abs(step - mark) <= margin for mark in self._memory.marks)


def _name(action: Action) -> str:
    return str(action.__struct_config__.tag)


def _parts(points: Points, size: int) -> Iterator[Points]:
    """Points in parts of at most `size`, without their samples."""
    for start in range(0, len(points), size):
        part = slice(start, start + size)
        columns = {
            name: Column(points.columns[name].values[part], points.columns[name].logged[part])
            for name in ("loss", "lr")
            if name in points.columns
        }
        yield Points(points.step[part], columns)
