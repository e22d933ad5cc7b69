"""What the trainings of the rescue benchmark come to."""

import math
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from scipy.stats import binomtest, wilcoxon

from optwatch.wire.actions import Command
from tests.benchmarks.detection.faults import share, wilson
from tests.benchmarks.rescue.arms import ARMS
from tests.benchmarks.rescue.courses import HEALTHY, REPAIRABLE, STEPS

NEAR = 1.05
"""A run is rescued, and a fault harmed a run, by whether it ends within 5 % of the run without the fault."""
HARMED = 1.02
"""A healthy run was harmed by an arm where it ends more than 2 % worse than left alone."""
BEHIND = 1.10
"""A stretch of the loss this much above the healthy one's counts as lost."""
WORST = math.log(10)
"""Where a loss is ten times what it should be, or not finite, how much more says nothing."""
OURS = "optwatch auto"


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """One training under one arm: its held-out loss at the end, its loss in levels of 20 steps, and what
    the daemon's ledger says."""

    case: str
    arm: str
    held_out: float | None
    curve: list[float | None]
    commands: tuple[Command, ...] = ()
    findings: list[tuple[str, str, int]] = []


class Report:
    """The arms beside one another. Pairs are of the same fault, model, optimizer and seed."""

    def __init__(self, ended: list[Ended]) -> None:
        self.ended = {(each.case, each.arm): each for each in ended}
        cases = sorted({each.case for each in ended})
        whole = [case for case in cases if all((case, arm) in self.ended for arm in ARMS)]
        self.harmed = [
            case
            for case in whole
            if case.split("/")[0] in REPAIRABLE
            and (_twin(case), "nothing") in self.ended
            and self._ratio(case, "nothing") > NEAR
        ]
        self.unharmed = [c for c in whole if c.split("/")[0] in REPAIRABLE and c not in self.harmed]
        self.healthy = [case for case in whole if case.split("/")[0] in HEALTHY]

    def rescued(self, arm: str, cases: list[str] | None = None) -> list[str]:
        return [c for c in (self.harmed if cases is None else cases) if self._ratio(c, arm) <= NEAR]

    def harm(self, arm: str, cases: list[str]) -> list[str]:
        """Those that end more than 2 % worse than they do when left alone."""
        return [c for c in cases if self._over(c, arm, c, "nothing") > HARMED]

    def lost(self, arm: str) -> list[int]:
        """Of each rescued run, the steps in which its loss was 10 % above that of the healthy one."""
        found = []
        for case in self.rescued(arm):
            twin = self.ended[_twin(case), "nothing"].curve
            levels = zip(self.ended[case, arm].curve, twin, strict=True)
            behind = sum(not (a is not None and b is not None and a <= BEHIND * b) for a, b in levels)
            found.append(behind * STEPS // len(twin))
        return found

    def against(self, arm: str) -> tuple[int, int, float, float]:
        """Ours beside an arm: rescued by ours alone, by the arm alone, the p of McNemar's exact test on
        these, and of Wilcoxon's signed ranks on the logarithm of the final losses."""
        ours, theirs = set(self.rescued(OURS)), set(self.rescued(arm))
        alone, lost = len(ours - theirs), len(theirs - ours)
        mcnemar = binomtest(alone, alone + lost).pvalue if alone + lost else 1.0
        gaps = [_log(self._ratio(c, OURS)) - _log(self._ratio(c, arm)) for c in self.harmed]
        ranks = float(wilcoxon(gaps).pvalue) if any(gaps) else 1.0
        return alone, lost, float(mcnemar), ranks

    def numbers(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "harmed": len(self.harmed),
            "healthy": len(self.healthy),
            "arms": {
                arm: {
                    "rescued": len(self.rescued(arm)),
                    "by_fault": {
                        what: [len(self.rescued(arm, cases)), len(cases)]
                        for what in REPAIRABLE
                        if (cases := _of(what, self.harmed))
                    },
                    "median_log_ratio": median(
                        [_log(self._ratio(c, arm)) for c in self.harmed] or [math.nan]
                    ),
                    "median_steps_lost": median(lost) if (lost := self.lost(arm)) else None,
                    "healthy_harmed": self.harm(arm, self.healthy),
                    "unharmed_harmed": self.harm(arm, self.unharmed),
                    **({} if arm == OURS else {"against_ours": self.against(arm)}),
                }
                for arm in ARMS
            },
            "not_rescued": {c: self._ratio(c, OURS) for c in self.harmed if c not in self.rescued(OURS)},
            "verdicts": Counter(
                f"{command.action} {command.state} {command.outcome.verdict if command.outcome else '-'}"
                for each in self.ended.values()
                if each.arm == OURS
                for command in each.commands
            ),
        }

    def show(self) -> None:
        """Print it as tables."""
        print(f"{len(self.harmed)} trainings that a fault harmed, {len(self.healthy)} healthy controls\n")
        print(f"{'arm':<20} {'rescued (within 5 %)':<32} {'steps lost':<11} {'healthy harmed':<30} pairs")
        for arm in ARMS:
            lost = self.lost(arm)
            rescued = share(len(self.rescued(arm)), len(self.harmed))
            harmed = share(len(self.harm(arm, self.healthy)), len(self.healthy))
            pairs = ""
            if arm != OURS:
                alone, theirs, exact, ranks = self.against(arm)
                pairs = f"ours alone {alone}, it alone {theirs}: p = {exact:.1e} (ranks {ranks:.1e})"
            print(f"{arm:<20} {rescued:<32} {median(lost) if lost else '-':<11} {harmed:<30} {pairs}")
        print(f"\n{'fault':<20} " + " ".join(f"{arm[:17]:<18}" for arm in ARMS))
        for what in REPAIRABLE:
            cases = _of(what, self.harmed)
            shares = (f"{len(self.rescued(arm, cases))}/{len(cases)}" for arm in ARMS)
            print(f"{what:<20} " + " ".join(f"{each:<18}" for each in shares))
        numbers = self.numbers()
        for case, ratio in sorted(numbers["not_rescued"].items()):
            commands = self.ended[case, OURS].commands
            ledger = ", ".join(
                f"{c.action}@{c.step}:{c.outcome.verdict if c.outcome else c.state}" for c in commands
            )
            print(f"not rescued: {case:<44} {ratio:8.3f} x  {ledger}")
        for case in self.harm(OURS, self.healthy + self.unharmed):
            commands = [(c.action, c.step, c.why) for c in self.ended[case, OURS].commands]
            print(f"harmed: {case} {self._over(case, OURS, case, 'nothing'):.3f} x  {commands}")
        print(dict(numbers["verdicts"]))

    def plot(self, path: Path) -> None:
        """Draw, for each arm, what was rescued and what of the healthy was harmed, with intervals."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        rescued = [len(self.rescued(arm)) for arm in ARMS]
        harmed = [len(self.harm(arm, self.healthy)) for arm in ARMS]
        for axes, of, counts, title in (
            (left, len(self.harmed), rescued, "rescued (within 5 %)"),
            (right, len(self.healthy), harmed, "healthy, > 2 % worse"),
        ):
            shares = [count / max(of, 1) for count in counts]
            bounds = [wilson(count, of) for count in counts]
            low = [max(s - b[0], 0) for s, b in zip(shares, bounds, strict=True)]
            high = [max(b[1] - s, 0) for s, b in zip(shares, bounds, strict=True)]
            colours = ["#0072b2" if arm == OURS else "#d55e00" for arm in ARMS]
            axes.barh(ARMS, shares, xerr=[low, high], color=colours, ecolor="#555555", height=0.6)
            axes.set_title(f"{title} (of {of})")
            axes.set_xlabel("share, with its 95 % interval (Wilson)")
        left.set_xlim(0, 1)
        left.invert_yaxis()
        figure.savefig(path, dpi=110)

    def _ratio(self, case: str, arm: str) -> float:
        """The held-out loss at the end over that of the run without the fault."""
        return self._over(case, arm, _twin(case), "nothing")

    def _over(self, case: str, arm: str, other: str, other_arm: str) -> float:
        loss, beside = self.ended[case, arm].held_out, self.ended[other, other_arm].held_out
        if loss is None or not math.isfinite(loss):
            return math.inf
        return loss / beside if beside else math.inf


def _twin(case: str) -> str:
    return "/".join(["plain", *case.split("/")[1:]])


def _of(what: str, cases: list[str]) -> list[str]:
    return [case for case in cases if case.split("/")[0] == what]


def _log(ratio: float) -> float:
    return min(math.log(ratio), WORST) if ratio > 0 else -WORST
