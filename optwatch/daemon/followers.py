"""Followers: agents that want to be told of their own run, each thing once in each state."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from optwatch.series.timeline import Timeline
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.messages import MOST_NEWS, Follow, News

PERIOD = 0.5
"""Seconds between two answers with rows to one session, however often it asks."""

Rows = tuple[tuple[int, ...], tuple[tuple[float | None, ...], ...]]


class Followers:
    """The sessions of one run that follow it. False where there are none, which is the rule."""

    def __init__(self) -> None:
        self._by_session: dict[str, Follower] = {}

    def __bool__(self) -> bool:
        return bool(self._by_session)

    def take(self, follow: Follow) -> None:
        """A session follows, or still does."""
        self._by_session.setdefault(follow.session, Follower()).take(follow)

    def news(
        self,
        speaking: Collection[str],
        timeline: Timeline,
        findings: Collection[Finding],
        commands: Collection[Command],
        now: float,
    ) -> Iterator[News]:
        """What is to be sent at the monotonic time `now`; a session that speaks for no rank is let go of."""
        for session in self._by_session.keys() - speaking:
            del self._by_session[session]
        for follower in self._by_session.values():
            if (news := follower.news(timeline, findings, commands, now)) is not None:
                yield news


class Follower:
    """One session, and what it has been told."""

    def __init__(self) -> None:
        self._follow: Follow | None = None
        self._asked = False
        self._next_rows = 0.0
        self._number = 0
        self._told: dict[int | str, Finding | Command] = {}

    def take(self, follow: Follow) -> None:
        if follow.seen != self._number:  # something was lost, or this daemon is new
            self._told.clear()
        self._follow, self._asked = follow, True

    def news(
        self, timeline: Timeline, findings: Iterable[Finding], commands: Iterable[Command], now: float
    ) -> News | None:
        """What it has not been told; rows only where it has asked since the last time."""
        assert self._follow is not None
        changed = [finding for finding in findings if self._told.get(finding.id) is not finding][:MOST_NEWS]
        given = [command for command in commands if self._told.get(command.id) is not command][:MOST_NEWS]
        columns = tuple(name for name in self._follow.columns if name in timeline.columns)
        rows: Rows = (), ()
        if self._asked and now >= self._next_rows:
            self._asked, self._next_rows = False, now + PERIOD
            rows = rows_after(timeline, columns, self._follow.after)
        steps, values = rows
        if not (changed or given or steps):
            return None
        self._told.update((finding.id, finding) for finding in changed)
        self._told.update((command.id, command) for command in given)
        self._number += 1
        return News(
            session=self._follow.session,
            number=self._number,
            columns=columns,
            steps=steps,
            values=values,
            findings=tuple(changed),
            commands=tuple(given),
        )


def rows_after(timeline: Timeline, columns: tuple[str, ...], step: int) -> Rows:
    """The rows behind a step, in at most `MOST_NEWS` parts: of each its last step, and of each column the
    last value that was logged in it."""
    steps, values, logged = timeline.window(step + 1, None, columns, None)
    if not len(steps) or not columns:
        return (), ()
    found_steps, found_rows = [], []
    for part in np.array_split(np.arange(len(steps)), min(len(steps), MOST_NEWS)):
        row: list[float | None] = []
        for at in range(len(columns)):
            there = part[logged[part, at]]
            row.append(float(values[there[-1], at]) if len(there) else None)
        found_steps.append(int(steps[part[-1]]))
        found_rows.append(tuple(row))
    return tuple(found_steps), tuple(found_rows)
