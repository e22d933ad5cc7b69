"""Changes: what happened in a run that its subscribers have not been told yet."""

from collections import deque

from optwatch.daemon.assembly import Record
from optwatch.series.points import Points
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.requests import Marker

MAX_RECORDS = 16


class Changes:
    """The content of the next `Delta`, and the number of the last one."""

    def __init__(self) -> None:
        self.seq = 0
        self.points: list[Points] = []
        self.further: dict[int, list[Points]] = {}
        """Those of the further optimizers, by number; a `Delta` has the first one's."""
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.findings: dict[int, Finding] = {}
        self.commands: dict[str, Command] = {}
        self.markers: list[Marker] = []
