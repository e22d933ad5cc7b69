"""Everything that was done to a run, or proposed: who asked and why, the votes, and what came of it."""

from typing import ClassVar

from textual.binding import BindingType

from optwatch.wire.actions import OPEN_STATES, Command
from optwatch_tui import describe, evidence, formats
from optwatch_tui.bindings import Scope, bindings
from optwatch_tui.charts import Picture
from optwatch_tui.model import Snapshot
from optwatch_tui.rows import Item, Row
from optwatch_tui.screens.ledger import LedgerScreen


class ActionsScreen(LedgerScreen[Command]):
    """The newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("actions")]
    SCOPE: ClassVar[Scope] = "actions"
    WHAT = "actions"
    EMPTY = "nothing was done or proposed so far"

    def selected_command(self) -> str | None:
        return self._listing.selected

    def entries(self, snapshot: Snapshot) -> list[Command]:
        return list(snapshot.commands)

    def key(self, entry: Command) -> str:
        return entry.id

    def words(self, entry: Command) -> str:
        verdict = entry.outcome.verdict if entry.outcome is not None else ""
        return (
            f"{entry.action} {formats.command(entry)} {entry.state} {entry.asked_by} {entry.why} "
            f"{entry.reason} {verdict}"
        )

    def is_open(self, entry: Command) -> bool:
        return entry.state in OPEN_STATES

    def item(self, entry: Command, snapshot: Snapshot, width: int) -> Item:
        answer = self.watch_app.named_keys.answer
        return describe.command_item(entry, snapshot.status.world_size, width, answer)

    def heading(self, entry: Command) -> str:
        return f"action {entry.id}: {formats.command(entry)}"

    def in_full(self, entry: Command, snapshot: Snapshot, width: int) -> list[Row]:
        head: Row = ((self.heading(entry), "title"),)
        app = self.watch_app
        return [head, *describe.command_details(entry, snapshot, app.now(), width, app.named_keys)]

    def picture(self, entry: Command, snapshot: Snapshot) -> Picture:
        return evidence.command_picture(entry, snapshot)
