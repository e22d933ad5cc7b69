"""Every finding of a run: over the steps, in a list, and one in full with the chart it was read from."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from optwatch.wire.findings import ALARMS, Finding
from optwatch_tui import describe, evidence, formats
from optwatch_tui.bindings import Scope, bindings
from optwatch_tui.charts import Picture, extent
from optwatch_tui.look import Window
from optwatch_tui.model import Snapshot
from optwatch_tui.rows import Item, Row
from optwatch_tui.screens.ledger import LedgerScreen
from optwatch_tui.widgets.frame import Lines

_SEVERITIES = {
    "all severities": ("watch", "info", "warning", "critical"),
    "alarms": tuple(ALARMS),
    "critical": ("critical",),
    "hints": ("watch", "info"),
}


class Timeline(Lines):
    """What was open when, from the first step to the newest."""

    def __init__(self) -> None:
        super().__init__(id="timeline")
        self._findings: tuple[Finding, ...] = ()
        self._ends = (0.0, 1.0)
        self._at: int | None = None

    def show(
        self, findings: tuple[Finding, ...], first: float, last: float, selected: Finding | None
    ) -> None:
        self._findings, self._ends = findings, (first, last)
        self._at = None if selected is None else selected.onset_step
        self.renew()

    def lines(self, width: int, height: int) -> list[Row]:
        (first, last), inner = self._ends, max(1, width - 2)
        cells = evidence.timeline(self._findings, first, last, inner)
        below = [" "] * inner
        for text, at in ((formats.count(int(first)), 0), (formats.count(int(last)), inner)):
            start = max(0, min(at, inner - len(text)))
            below[start : start + len(text)] = text
        if self._at is not None:
            at = round((self._at - first) / max(last - first, 1e-9) * (inner - 1))
            text = f"▴ {formats.count(self._at)}"
            if at + len(text) > inner:
                text = f"{formats.count(self._at)} ▴"
                at -= len(text) - 1
            below[max(0, at) : max(0, at) + len(text)] = text
        return [((" ", "text"), *cells), ((f" {''.join(below[:inner])}", "muted"),)]


class FindingsScreen(LedgerScreen[Finding]):
    """Open ones first, the worst on top."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("findings")]
    SCOPE: ClassVar[Scope] = "findings"
    WHAT = "findings"
    EMPTY = "nothing was found so far"

    def __init__(self) -> None:
        super().__init__()
        self._severity = 0
        self._timeline = Timeline()

    def above(self) -> ComposeResult:
        yield self._timeline

    def changed(self) -> None:
        super().changed()
        if (snapshot := self.looked_at()) is not None:
            first, last = Window().edges(extent(snapshot))
            shown = tuple(finding for finding in snapshot.findings if self._kept(finding))
            self._timeline.show(shown, first, last, self.selected(snapshot))

    def entries(self, snapshot: Snapshot) -> list[Finding]:
        over = (finding for finding in snapshot.findings if finding.resolved_step is not None)
        return [*snapshot.open_findings, *over]

    def key(self, entry: Finding) -> str:
        return str(entry.id)

    def words(self, entry: Finding) -> str:
        causes = " ".join(cause.cause for cause in entry.causes)
        return f"{entry.kind} {entry.severity} {describe.where(entry)} {entry.summary} {causes}"

    def is_open(self, entry: Finding) -> bool:
        return entry.resolved_step is None

    def _kept(self, entry: Finding) -> bool:
        return super()._kept(entry) and entry.severity in list(_SEVERITIES.values())[self._severity]

    def item(self, entry: Finding, snapshot: Snapshot, width: int) -> Item:
        return describe.finding_item(entry, width)

    def heading(self, entry: Finding) -> str:
        place = f"  {describe.where(entry)}" if describe.where(entry) else ""
        over = "" if entry.resolved_step is None else f", over at {formats.count(entry.resolved_step)}"
        return f"{entry.kind}{place}  since {formats.count(entry.onset_step)}{over}"

    def in_full(self, entry: Finding, snapshot: Snapshot, width: int) -> list[Row]:
        head: Row = ((self.heading(entry), "title"), (f"  {entry.severity}", entry.severity))
        return [head, *describe.finding_details(entry, width)[1:]]

    def in_short(self, entry: Finding, snapshot: Snapshot, width: int) -> list[Row]:
        return describe.finding_reasons(entry, width)

    def picture(self, entry: Finding, snapshot: Snapshot) -> Picture:
        return evidence.finding_picture(entry, snapshot)

    def action_severity(self) -> None:
        self._severity = (self._severity + 1) % len(_SEVERITIES)
        self.changed()
        self.notice(((" ○ ", "info"), (f"shown: {list(_SEVERITIES)[self._severity]}", "text")))
