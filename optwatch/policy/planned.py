"""Which scheduled actions are due: every so many steps, or when a scalar no longer becomes lower."""

from collections.abc import Sequence

import msgspec
import numpy as np

from optwatch.policy.rules import Schedule
from optwatch.series.points import Points

THRESHOLD = 1e-4
"""A value is lower where it is so by this share at least (torch's ReduceLROnPlateau, mode "rel")."""


class Progress(msgspec.Struct):
    """How far one schedule is."""

    next: float | None = None
    """The step at which the present period ends, None before the first point."""
    period: float = 0.0
    best: float = float("inf")
    bad: int = 0
    """Values since the best one."""
    done: int = 0
    """How often it acted."""


class Plans(msgspec.Struct):
    """The progress of each schedule, by what it says: one that a new policy file changes begins anew."""

    progress: dict[str, Progress] = {}

    def follow(self, schedules: Sequence[Schedule], points: Points) -> None:
        """Take the run's next points."""
        known = {_key(schedule): schedule for schedule in schedules}
        self.progress = {key: self.progress.get(key) or Progress() for key in known}
        for key, schedule in known.items():
            progress = self.progress[key]
            if schedule.every is not None:
                if progress.next is None and len(points):
                    progress.next = progress.period = float(schedule.every)
                    # A run that is first seen late, as one that resumes, does not make up for the past.
                    _pass(progress, schedule, int(points.step[0]) - 1)
                continue
            column = points.column(schedule.of)
            for value in column.values[column.logged & np.isfinite(column.values)].tolist():
                if value < progress.best - THRESHOLD * abs(progress.best) or progress.best == float("inf"):
                    progress.best, progress.bad = value, 0
                else:
                    progress.bad += 1

    def due(self, schedules: Sequence[Schedule], now: int) -> list[Schedule]:
        """Those whose time has come, in the order of the file."""
        return [
            schedule
            for schedule in schedules
            if (progress := self.progress.get(_key(schedule))) is not None
            and (schedule.times is None or progress.done < schedule.times)
            and (
                (progress.next is not None and now >= progress.next)
                if schedule.every is not None
                else progress.bad >= schedule.patience
            )
        ]

    def acted(self, schedule: Schedule, now: int) -> None:
        """It was acted on."""
        self.progress[_key(schedule)].done += 1
        self.let_go(schedule, now)

    def let_go(self, schedule: Schedule, now: int) -> None:
        """Its time is over, acted on or not: the next period begins."""
        progress = self.progress[_key(schedule)]
        progress.bad = 0
        if schedule.every is not None:
            _pass(progress, schedule, now)


def _pass(progress: Progress, schedule: Schedule, now: int) -> None:
    """Go on to the first period that ends after `now`."""
    assert progress.next is not None
    if schedule.growth == 1:
        progress.next = float((now // int(progress.period) + 1) * int(progress.period))
        return
    while progress.next <= now:
        progress.period *= schedule.growth
        progress.next += progress.period


def _key(schedule: Schedule) -> str:
    return msgspec.json.encode(schedule).decode()
