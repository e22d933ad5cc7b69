"""How the subcommands print: aligned tables, glyphs and colours, numbers, JSON."""

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from optwatch.wire.actions import Command
from optwatch.wire.findings import Severity

RED, YELLOW, BLUE, GREEN, DIM, BOLD = "31", "33", "34", "32", "2", "1"

SEVERITY: dict[Severity, tuple[str, str]] = {
    "critical": ("✖", RED),
    "warning": ("▲", YELLOW),
    "info": ("●", BLUE),
    "watch": ("·", DIM),
}
"""Glyph and colour of a severity: the glyph says it where there is no colour."""

STATE: dict[str, tuple[str, str]] = {
    "proposed": ("?", YELLOW),
    "sent": ("…", BLUE),
    "scheduled": ("…", BLUE),
    "applied": ("✓", GREEN),
    "judged": ("✓", GREEN),
    "dismissed": ("-", DIM),
    "refused": ("✖", RED),
    "expired": ("✖", RED),
    "failed": ("✖", RED),
    "undone": ("↶", DIM),
}
"""Glyph and colour of a command's state."""

Cell = str | tuple[str, str]
"""A text, or a text and its colour."""


def print_json(value: Any) -> None:
    """Plain values or structs as one JSON document; NaN and infinity as null."""
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(data.decode() + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int] = ()) -> None:
    """Rows under their headers; the columns in `right` to the right; the last is cut to the terminal."""
    cells = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    lines = [[(header, DIM) for header in headers], *cells]
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(headers))]
    room = _width() - sum(widths[:-1]) - 2 * (len(headers) - 1)
    for line in lines:
        parts = []
        for column, (text, colour) in enumerate(line):
            last = column == len(line) - 1
            if last and len(text) > max(room, 20):
                text = text[: max(room, 20) - 1] + "…"
            width = 0 if last and column not in right else widths[column]
            parts.append(paint(text.rjust(width) if column in right else text.ljust(width), colour))
        print("  ".join(parts).rstrip())


def print_facts(facts: Mapping[str, Cell]) -> None:
    """Names and values in two columns."""
    width = max(map(len, facts))
    for name, cell in facts.items():
        text, colour = (cell, "") if isinstance(cell, str) else cell
        print(f"{paint(name.ljust(width), DIM)}  {paint(text, colour)}")


def paint(text: str, colour: str) -> str:
    """A text in a colour, without it where nobody sees it or $NO_COLOR asks for none."""
    text = plain(text)
    if not colour or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def plain(text: str) -> str:
    """A text that does nothing to the terminal, whatever a run's name or a mark holds."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def severity_cell(severity: str | None) -> Cell:
    """Glyph and word of a severity, "-" for none."""
    if severity not in SEVERITY:
        return severity or "-"
    glyph, colour = SEVERITY[severity]
    return f"{glyph} {severity}", colour


def state_cell(command: Command) -> tuple[str, str]:
    """Glyph and word of a command's state; what was judged says its verdict's colour."""
    glyph, colour = STATE[command.state]
    if command.outcome is not None and command.outcome.verdict == "hurt":
        colour = RED
    return f"{glyph} {command.state}", colour


def number(value: float | None) -> str:
    """Four significant digits, "-" for none."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.2g} %"


def ago(moment: float) -> str:
    """How long ago a unix time was, in its largest unit."""
    passed = max(0.0, time.time() - moment)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def _width() -> int:
    """Columns of the terminal; where the output is no terminal, nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
