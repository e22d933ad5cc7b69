"""Outbox: when a target is told what. Pure: it knows no network and no clock of its own."""

import time
from collections import OrderedDict
from collections.abc import Sequence

from optwatch.export.notices import Message, Notice, message_of
from optwatch.export.targets import Target
from optwatch.wire.findings import SEVERITIES

MOST_HELD = 200
"""Notices that may wait for one target; of more, the oldest that is not critical goes."""
MOST_TOLD = 10_000
FIRST_RETRY, LONGEST_RETRY = 30.0, 3_600.0
"""Seconds after which a failed message is tried again: first, doubled each time, at most."""


class Outbox:
    """What waits for one target. Times are unix seconds."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._held: list[Notice] = []
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        """When each key of a run was last taken, and how severe it was."""
        self._repeated = 0
        self._left_out = 0
        self._digest_at = float("-inf")
        """When what is gathered is due."""
        self._failures = 0
        self._retry_at = float("-inf")

    @property
    def waiting(self) -> int:
        """How many notices wait."""
        return len(self._held)

    def take(self, notice: Notice, now: float) -> None:
        """Let a notice wait to be sent, unless the target does not want it or has had it."""
        if not self._wants(notice) or self._is_repetition(notice, now):
            return
        if not any(each.severity != "critical" for each in self._held):
            self._digest_at = now + 60 * self.target.digest_minutes
        self._held.append(notice)
        if len(self._held) > MOST_HELD:
            self._left_out += 1
            calm = (at for at, each in enumerate(self._held) if each.severity != "critical")
            del self._held[next(calm, 0)]

    def due(self, now: float, ending: bool = False) -> tuple[Sequence[Notice], Message] | None:
        """What is to be sent now, as one message; None while there is nothing. At the end nothing gathers."""
        if now < self._retry_at:
            return None
        gathered = ending or now >= self._digest_at
        ready = [notice for notice in self._held if gathered or notice.severity == "critical"]
        local = time.localtime(now)
        if self.target.is_quiet(60 * local.tm_hour + local.tm_min):
            ready = [notice for notice in ready if notice.severity in self.target.quiet_except]
        return (ready, message_of(ready, self._repeated, self._left_out)) if ready else None

    def sent(self, notices: Sequence[Notice], now: float, well: bool) -> None:
        """Whether what was due could be sent."""
        if not well:
            self._retry_at = now + min(FIRST_RETRY * 2**self._failures, LONGEST_RETRY)
            self._failures = min(self._failures + 1, 20)
            return
        gone = set(map(id, notices))
        self._held = [notice for notice in self._held if id(notice) not in gone]
        self._failures = self._repeated = self._left_out = 0

    def _wants(self, notice: Notice) -> bool:
        target = self.target
        return (
            notice.about in target.about
            and (notice.found is None or notice.found in target.severity)
            and (not notice.kind or not target.kind or notice.kind in target.kind)
        )

    def _is_repetition(self, notice: Notice, now: float) -> bool:
        key, severity = (notice.run, notice.key), SEVERITIES.index(notice.severity)
        at, worst = self._told.get(key, (float("-inf"), -1))
        if now - at < 60 * self.target.repeat_minutes and severity <= worst:
            self._repeated += notice.about == "finding"
            return True
        self._told[key] = now, severity
        self._told.move_to_end(key)
        if len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        return False
