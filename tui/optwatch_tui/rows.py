"""Rows of text: spans, each with the role it is drawn in. Everything from the wire is made harmless here."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip

from optwatch_tui.formats import plain
from optwatch_tui.theme import Palette, ink

Span = tuple[str, str]
"""A text and the role it is drawn in (`theme.ink`)."""
Row = tuple[Span, ...]


def row_length(row: Row) -> int:
    """Cells that a row takes."""
    return sum(len(text) if text.isascii() else cell_len(text) for text, _ in row)


def strip_of(row: Row, width: int, palette: Palette) -> Strip:
    """A row as Textual draws it, cut or filled to `width`; nothing in it can drive the terminal."""
    row = tuple((plain(text), role) for text, role in row if text)
    strip = Strip([Segment(text, ink(palette, role)) for text, role in row], row_length(row))
    return strip.adjust_cell_length(width, ink(palette, "text"))


@dataclass(frozen=True)
class Item:
    """Something in a list: `key` tells it apart from update to update, `rows` are its lines."""

    key: str
    rows: tuple[Row, ...]


def clip_row(row: Row, width: int) -> Row:
    """A row cut to `width` cells, with … where something had to go."""
    if row_length(row) <= width:
        return row
    kept: list[Span] = []
    room = width - 1
    for text, role in row:
        if cell_len(text) <= room:
            kept.append((text, role))
            room -= cell_len(text)
            continue
        cut = ""
        for character in text:
            if cell_len(character) > room:
                break
            cut += character
            room -= cell_len(character)
        kept.append((cut + "…", role))
        break
    return tuple(kept)


def wrap(text: str, width: int, most: int) -> list[str]:
    """A sentence over at most `most` lines of `width` cells, the last cut with … where it does not fit."""
    lines: list[str] = []
    words = plain(text).split()
    while words and len(lines) < most:
        line = words.pop(0)
        while words and cell_len(line) + 1 + cell_len(words[0]) <= width:
            line += " " + words.pop(0)
        lines.append(line)
    if words:
        lines[-1] = clip_row(((f"{lines[-1]} {words[0]}", ""),), width)[0][0].rstrip("…") + "…"
    return lines
