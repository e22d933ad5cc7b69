"""What the screens share from which one acts: a question, the request, and word of what became of it."""

from collections.abc import Callable

from optwatch.wire.actions import Command
from optwatch.wire.requests import Request
from optwatch_tui import acting, formats
from optwatch_tui.acting import Preview
from optwatch_tui.model import Snapshot
from optwatch_tui.screens.base import LookingScreen
from optwatch_tui.screens.choose import ChooseScreen
from optwatch_tui.screens.confirm import ConfirmScreen

_ENDS = {"applied": "ok", "judged": "ok", "refused": "critical", "failed": "critical", "expired": "critical"}


class ActingScreen(LookingScreen):
    """Asks before it acts; says why where one cannot."""

    _command_states: dict[str, str] | None = None

    def selected_command(self) -> str | None:
        """The id of the command that is selected on this screen."""
        return None

    def action_act(self, name: str) -> None:
        undo = self.watch_app.named_keys.undo
        if (snapshot := self._armed()) is not None:
            self._ask(snapshot, lambda now: acting.preview(name, now, undo))

    def action_any_action(self) -> None:
        def chosen(name: str | None) -> None:
            if name is not None:
                self.action_act(name)

        if (snapshot := self._armed()) is not None:
            self.app.push_screen(ChooseScreen("which action?", acting.preview_any(snapshot)), chosen)

    def action_approve(self) -> None:
        undo = self.watch_app.named_keys.undo
        if (snapshot := self._armed()) is not None and (command := self._proposal(snapshot)) is not None:
            self._ask(snapshot, lambda now: acting.preview_approve(command, now, undo))

    def action_turn_down(self) -> None:
        if (snapshot := self._armed()) is not None and (command := self._proposal(snapshot)) is not None:
            self._ask(snapshot, lambda now: acting.preview_dismiss(command, now))

    def action_undo(self) -> None:
        if (snapshot := self._armed()) is None:
            return
        if (command := snapshot.undoable) is None:
            self.notice(
                ((" – ", "muted"), ("nothing to undo: no applied action that can be taken back", "text"))
            )
        else:
            self._ask(snapshot, lambda now: acting.preview_undo(command, now))

    def action_mode(self) -> None:
        if (snapshot := self._armed()) is not None:
            self._ask(snapshot, acting.preview_mode)

    def action_mark(self) -> None:
        if (snapshot := self._armed()) is not None:
            self._ask(snapshot, acting.preview_mark)

    def action_findings(self) -> None:
        self.watch_app.show_findings()

    def action_actions(self) -> None:
        self.watch_app.show_actions()

    def _armed(self) -> Snapshot | None:
        """The newest snapshot, where one may act at all; says why where not."""
        app = self.watch_app
        if app.readonly:
            self.notice(((" – ", "warning"), (READ_ONLY, "text")))
            return None
        if app.link.state != "live":
            self.notice(((" – ", "warning"), ("no link to the daemon: nothing can be sent", "text")))
            return None
        return app.snapshot

    def _proposal(self, snapshot: Snapshot) -> Command | None:
        """The selected proposal, else the newest."""
        selected = self.selected_command()
        chosen = [command for command in snapshot.proposals if command.id == selected]
        proposal = next(iter((*chosen, *snapshot.proposals)), None)
        if proposal is None:
            self.notice(((" – ", "muted"), ("nothing is proposed", "text")))
        return proposal

    def _ask(self, snapshot: Snapshot, question: Callable[[Snapshot], Preview]) -> None:
        """Ask, while the run goes on: what the question says is kept as true as the newest snapshot."""
        app = self.watch_app

        def again() -> Preview | None:
            return None if app.snapshot is None else question(app.snapshot)

        def decided(request: Request | None) -> None:
            if request is not None:
                app.feed.ask(request)
                self.notice(((" … ", "info"), ("asked the daemon", "muted")))

        app.push_screen(ConfirmScreen(question(snapshot), again), decided)

    def tell_of_commands(self, snapshot: Snapshot) -> None:
        """Say when a command reaches an end, whoever asked for it."""
        before = self._command_states
        self._command_states = {command.id: command.state for command in snapshot.commands}
        if before is None:
            return
        for command in reversed(snapshot.commands):
            if command.state == before.get(command.id) or command.state not in _ENDS:
                continue
            at = f" at step {formats.count(command.step)}" if command.step is not None else ""
            result = f": {command.outcome.verdict}" if command.outcome is not None else ""
            reason = f": {command.reason}" if command.reason else ""
            role = _ENDS[command.state]
            sign = "✓" if role == "ok" else "✗"
            self.notice(
                (
                    (f" {sign} ", role),
                    (formats.command(command), "title"),
                    (f" {command.state}{at}{result}{reason}", "text"),
                )
            )


READ_ONLY = "read-only: started with --readonly, nothing can be changed"
