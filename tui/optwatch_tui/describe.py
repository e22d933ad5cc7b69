"""Findings, actions, runs and the state of a run in words and signs. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from optwatch.wire.actions import Command
from optwatch.wire.findings import SEVERITIES, Finding
from optwatch.wire.requests import RunInfo
from optwatch_tui import formats
from optwatch_tui.model import Glance, Link, Snapshot
from optwatch_tui.plan import planned_steps, seconds_left
from optwatch_tui.rows import Item, Row, Span, clip_row, row_length, wrap
from optwatch_tui.theme import COMMAND_GLYPHS, SEVERITY_GLYPHS, STATE_GLYPHS


@dataclass(frozen=True)
class NamedKeys:
    """The keys that sentences name, as the user has them. `answer`: None where nothing can be changed."""

    findings: str
    undo: str
    answer: tuple[str, str] | None
    """Those that approve and dismiss a proposal."""


_VERDICT_ROLES = {"helped": "ok", "neutral": "muted", "hurt": "critical", "unclear": "muted"}
_COMMAND_ROLES = {
    "proposed": "warning",
    "sent": "info",
    "scheduled": "info",
    "applied": "ok",
    "judged": "ok",
    "dismissed": "muted",
    "refused": "critical",
    "expired": "critical",
    "failed": "critical",
    "undone": "muted",
}


def finding_item(finding: Finding, width: int) -> Item:
    """A finding in a list: what and where, the sentence about it, and what likely causes it."""
    over = finding.resolved_step is not None
    role = "muted" if over else finding.severity
    glyph = "✓" if over else SEVERITY_GLYPHS[finding.severity]
    ending = f"over at {formats.count(finding.resolved_step)}" if finding.resolved_step is not None else ""
    head: Row = (
        (f" {glyph} ", role),
        (f"{formats.count(finding.step)} ", "muted"),
        (finding.kind, "muted" if over else "title"),
        (f"  {where(finding)}" if where(finding) else "", "text"),
        (f"  {ending or f'since {formats.count(finding.onset_step)}'}", "muted"),
    )
    rows: list[Row] = [head]
    rows.extend(
        ((f"   {line}", "muted" if over else "text"),) for line in wrap(finding.summary, width - 4, 2)
    )
    if finding.causes and not over:
        rows.append((("   cause: ", "muted"), (causes(finding, 3), "text")))
    return Item(str(finding.id), tuple(rows))


def where(finding: Finding) -> str:
    """The tensor, group or rank that it is about; all ranks otherwise."""
    if finding.tensor is not None:
        return finding.tensor
    if finding.rank is not None:
        return f"rank {finding.rank}"
    return f"group {finding.group}" if finding.group is not None else ""


def causes(finding: Finding, most: int) -> str:
    """Likely causes with their weights: lr_too_high .70 · bad_batch .20."""
    likely = sorted(finding.causes, key=lambda cause: -cause.weight)[:most]
    return " · ".join(f"{cause.cause} {cause.weight:.2f}".replace(" 0.", " .") for cause in likely)


def finding_details(finding: Finding, width: int) -> list[Row]:
    """Everything that is known about a finding: summary, causes with reasons, remedies, evidence.

    What can be done stands before the numbers, so that it is in view on a small screen.
    """
    rows: list[Row] = [(("", "text"),)]
    rows.extend(((line, "text"),) for line in wrap(finding.summary, width, 6))
    return [*rows, (), *finding_reasons(finding, width)]


def finding_reasons(finding: Finding, width: int) -> list[Row]:
    """The same without what a list says of it already."""
    rows: list[Row] = []
    if finding.causes:
        rows += [(), (("likely causes", "title"),)]
        for cause in sorted(finding.causes, key=lambda cause: -cause.weight):
            rows.append(((f"  {cause.weight:4.0%}  ", "value"), (cause.cause, "warning")))
            rows.extend(((f"        {line}", "muted"),) for line in wrap(cause.because, width - 8, 3))
    if finding.remedies:
        rows += [(), (("what helps", "title"),)]
        for remedy in finding.remedies:
            what = (
                "in the script" if remedy.action == "advice" else formats.action(remedy.action, remedy.args)
            )
            rows.append(((f"  {what}", "ok"),))
            rows.extend(((f"        {line}", "muted"),) for line in wrap(remedy.why, width - 8, 3))
    if finding.evidence:
        rows += [(), (("evidence", "title"),)]
        for name, value in finding.evidence.items():
            shown = value if isinstance(value, str) else formats.setting(float(value))
            rows.append(((f"  {name}  ", "muted"), (shown, "value")))
    return rows[1:]


def command_item(command: Command, world_size: int, width: int, answer: tuple[str, str] | None) -> Item:
    """A command in a list: its state, and what became of it."""
    step = f"{formats.count(command.step)} " if command.step is not None else ""
    head: Row = (
        (f" {COMMAND_GLYPHS[command.state]} ", _COMMAND_ROLES[command.state]),
        (step, "muted"),
        (formats.command(command), "title" if command.state not in ("dismissed", "undone") else "muted"),
        (f"  {_progress(command, world_size)}", _COMMAND_ROLES[command.state]),
    )
    rows: list[Row] = [head]
    if command.outcome is not None:
        numbers = "  ".join(f"{name} {formats.number(v)}" for name, v in command.outcome.numbers.items())
        verdict = command.outcome.verdict
        rows.append(((f"   {verdict}", _VERDICT_ROLES[verdict]), (f"  {numbers}", "muted")))
    elif command.state == "proposed" and answer is not None:
        rows.append(
            ((f"   {answer[0]}", "key"), (" approve  ", "muted"), (answer[1], "key"), (" dismiss", "muted"))
        )
    if text := command.reason or (command.why if command.state in ("proposed", "sent", "scheduled") else ""):
        rows.extend(((f"   {line}", "muted"),) for line in wrap(text, width - 4, 2))
    return Item(command.id, tuple(rows))


def _progress(command: Command, world_size: int) -> str:
    if command.state in ("applied", "judged"):
        if world_size <= 1:
            return "applied"
        return f"{len(command.ranks_applied)} of {world_size} ranks"
    return f"{command.state}{votes(command, world_size)}"


def votes(command: Command, world_size: int) -> str:
    """How far the ranks are in agreeing on a step: ` at 18,430, votes 2 of 4`; empty where none vote."""
    if command.due is None or command.state not in ("sent", "scheduled"):
        return ""
    return f" at {formats.count(command.due)}, votes {len(command.votes)} of {world_size}"


def command_details(
    command: Command, snapshot: Snapshot, now: float, width: int, keys: NamedKeys
) -> list[Row]:
    """Everything that is known about a command: its way from the asking to the outcome."""
    world = snapshot.status.world_size
    rows: list[Row] = [
        (
            (f"{COMMAND_GLYPHS[command.state]} {command.state}", _COMMAND_ROLES[command.state]),
            (f"   asked {formats.span(now - command.asked_at)} ago by ", "muted"),
            (command.asked_by, "text"),
        )
    ]

    def fact(label: str, text: str, role: str = "text") -> None:
        for at, line in enumerate(wrap(text, width - 11, 4)):
            rows.append(((f"{label if at == 0 else '':<10} ", "muted"), (line, role)))

    if command.why:
        fact("why", command.why)
    finding = next((f for f in snapshot.findings if f.id == command.finding), None)
    if finding is not None:
        fact("finding", f"{finding.kind} since {formats.count(finding.onset_step)}: {finding.summary}")
    for name, value in command.args.items():
        fact(name, value if isinstance(value, str) else formats.setting(float(value)))
    if command.due is not None and world > 1:
        voted = f": {_ranks(command.votes)}" if command.votes else ""
        fact("votes", f"{len(command.votes)} of {world} for step {formats.count(command.due)}{voted}")
    if command.step is not None:
        on = f"{len(command.ranks_applied)} of {world}: {_ranks(command.ranks_applied)}"
        fact("applied", f"at step {formats.count(command.step)}" + (f", on {on}" if world > 1 else ""))
    if command.outcome is not None:
        verdict = command.outcome.verdict
        fact("outcome", verdict, _VERDICT_ROLES[verdict])
        for name, number in command.outcome.numbers.items():
            fact("", f"{name} {formats.number(number)}", "value")
    if command.reason:
        fact("reason", command.reason)
    if command.undo_of is not None:
        fact("takes back", f"action {command.undo_of}")
    taken_back = [other.id for other in snapshot.commands if other.undo_of == command.id]
    if taken_back:
        fact("undone by", f"action {', '.join(taken_back)}")
    if snapshot.undoable is command:
        fact("to undo", keys.undo)
    return rows


def _ranks(ranks: tuple[int, ...]) -> str:
    """Ranks in few characters: ranks 0-3, 7."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return "ranks " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def run_item(run: RunInfo, now: float, width: int, glance: Glance | None, picked: bool) -> Item:
    """A run in the list of runs. `picked`: to be compared."""
    role = {"live": "ok", "stale": "warning", "ended": "muted"}[run.state]
    worst = run.worst or "none"
    live = run.state == "live"
    left = seconds_left(run.step, run.rate if live else None, None if glance is None else glance.planned)
    cells: dict[str, Row] = {
        "state": (("+" if picked else " ", "key"), (f"{STATE_GLYPHS[run.state]} {run.state}", role)),
        "run": ((formats.plain(run.name), "title" if live else "text"),),
        "id": ((formats.short_id(run.run), "muted"),),
        "step": ((formats.count(run.step), "text"),),
        "rate": ((formats.rate(run.rate) if live else "", "text"),),
        "left": (("" if left is None else formats.span(left), "text"),),
        "loss": ((formats.number(run.loss), "value"),),
        "": ((formats.sparkline(glance.loss if glance is not None else (), _TREND), "first"),),
        "findings": (
            (f"{SEVERITY_GLYPHS[worst]} {worst}", worst) if worst in SEVERITIES else ("-", "muted"),
        ),
        "age": ((formats.span(now - run.started), "muted"),),
    }
    return Item(run.run, (_run_cells(cells, width),))


_TREND = 12
"""Cells of a run's loss in the list."""
_COLUMNS = {
    "state": 9,
    "run": -10,
    "id": 6,
    "step": 10,
    "rate": 10,
    "left": 9,
    "loss": 9,
    "": _TREND + 2,
    "findings": 12,
    "age": 9,
}
"""The columns of the list and their cells; the name's take what is left, 10 at least."""
_RIGHT = ("step", "rate", "left", "loss", "age")
_FIRST_TO_GO = ("id", "age", "rate", "", "left")
"""Where the terminal is narrow."""


def _run_cells(cells: Mapping[str, Row], width: int) -> Row:
    kept = dict(_COLUMNS)
    for name in _FIRST_TO_GO:
        if sum(map(abs, kept.values())) > width:
            del kept[name]
    kept["run"] = max(10, min(40, width - sum(map(abs, kept.values())) + 10))
    out: list[Span] = []
    for name, room in kept.items():
        cell = clip_row(cells[name], room - 1)
        fill = (" " * (room - 1 - row_length(cell)), "text")
        out += [fill, *cell, (" ", "text")] if name in _RIGHT else [*cell, fill, (" ", "text")]
    return tuple(out)


def run_head(width: int) -> Row:
    """The heading over `run_item`s."""
    titles = {"state": " state", "": "loss so far"}
    return _run_cells({name: ((titles.get(name, name), "muted"),) for name in _COLUMNS}, width)


def verdict(snapshot: Snapshot, keys: NamedKeys, width: int) -> Row:
    """How the run is, in one sentence: the worst open finding and what can be done, or that all is well.

    Where the line is short the likely cause goes, then the step: what one can do stays.
    """
    under_way = snapshot.under_way
    if under_way:
        doing = under_way[0]
        waits = "waiting for the step" if doing.state == "scheduled" else "waiting for the ranks"
        state = f"  {doing.state}{votes(doing, snapshot.status.world_size)}, {waits}"
        return ((" … ", "info"), (formats.command(doing), "title"), (state, "muted"))
    worst = next(iter(snapshot.open_findings), None)
    call = _call(snapshot, keys.answer)
    if worst is None or worst.severity in ("watch", "info"):
        if call:
            return ((" ○ ", "info"), ("nothing alarming", "text"), *call)
        quiet = f", {len(snapshot.open_findings)} to watch" if snapshot.open_findings else ""
        return ((" ✓ ", "ok"), (f"nothing alarming{quiet}", "muted"))
    head: Row = ((f" {SEVERITY_GLYPHS[worst.severity]} ", worst.severity), (worst.kind, worst.severity))
    since: Row = ((f" since step {formats.count(worst.onset_step)}", "text"),)
    call = call or _done(worst, snapshot, keys)
    likely = max(worst.causes, key=lambda cause: cause.weight, default=None)
    because: Row = () if likely is None else ((f", likely {likely.cause}", "text"),)
    for middle in ((*since, *because), since):
        if row_length(row := (*head, *middle, *call)) <= width:
            return row
    return (*head, *call)


def _call(snapshot: Snapshot, answer: tuple[str, str] | None) -> Row:
    proposal = next(iter(snapshot.proposals), None)
    if proposal is None:
        return ()
    what: Row = (("  →  ", "muted"), (formats.command(proposal), "title"), (" proposed", "muted"))
    return (
        what
        if answer is None
        else (
            *what,
            (f"  {answer[0]}", "key"),
            (" approve  ", "muted"),
            (answer[1], "key"),
            (" dismiss", "muted"),
        )
    )


def _done(finding: Finding, snapshot: Snapshot, keys: NamedKeys) -> Row:
    """What was done about a finding, or where to read what helps."""
    done = next((c for c in snapshot.commands if c.finding == finding.id and c.step is not None), None)
    if done is None or done.state == "undone":
        return ((f"   {keys.findings}", "key"), (" why, and what helps", "muted"))
    outcome = "outcome awaited" if done.outcome is None else done.outcome.verdict
    return (
        ("  →  ", "muted"),
        (formats.command(done), "title"),
        (f" applied at {formats.count(done.step or 0)}, {outcome}", "muted"),
    )


def status_pieces(snapshot: Snapshot, link: Link, now: float) -> list[tuple[int, Row]]:
    """The header's pieces in their order, each with how soon it has to go where room is short (0: never)."""
    status = snapshot.status
    state = status.state if link.state == "live" else link.state
    role = {"live": "ok", "stale": "warning", "ended": "muted"}.get(state, "critical")
    state_text = f"{STATE_GLYPHS[state]} {state}"
    if link.state == "lost":
        state_text += f" {formats.span(now - link.since)}, trying again"
    left = seconds_left(status.step, status.rate if state == "live" else None, planned_steps(status.config))
    control = "armed" if status.control == "armed" else f"not armed: {status.control}"
    pieces: list[tuple[int, Row]] = [
        (5, (("optwatch ▸", "muted"),)),
        (0, ((formats.plain(status.name)[:28], "title"), (f" {formats.short_id(status.run)}", "muted"))),
        (0, ((state_text, role),)),
        (0, (("step ", "muted"), (formats.count(status.step), "value"))),
        (2, ((formats.rate(status.rate if state == "live" else None), "text"),)),
        *([] if left is None else [(2, (("left ", "muted"), (formats.span(left), "text")))]),
        (3, (("ranks ", "muted"), (formats.links(status.ranks, status.world_size), "text"))),
        (1, (("mode ", "muted"), (status.mode, "text"))),
        (4 if status.control == "armed" else 1, (("control ", "muted"), (control, "text"))),
    ]
    if status.overhead is not None:
        pieces.append((6, (("agent ", "muted"), (f"{status.overhead:.1%}", "text"))))
    return pieces
