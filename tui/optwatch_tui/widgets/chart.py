"""A chart of lines over steps, in braille."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from textual import events
from textual.message import Message

from optwatch_tui import raster
from optwatch_tui.charts import Line, Picture
from optwatch_tui.formats import count, number, setting, short_count, span, tick
from optwatch_tui.history import F8
from optwatch_tui.look import Places
from optwatch_tui.raster import Scale
from optwatch_tui.rows import Row, Span
from optwatch_tui.widgets.frame import Framed

_LABELS = 7
"""Cells for the labels of the value axis."""
_BLANK = ord(" ")
_WHEEL = 1.25
"""How much one turn of the wheel zooms."""


class Chart(Framed, can_focus=True):
    """One chart: title with the newest value (or that at the cursor), lines, axes, level and marks.

    The pointer zooms (wheel), pans (drag) and moves the cursor (hover, click): the screen is told by
    messages, since all its charts go together.
    """

    class Zoomed(Message):
        """The wheel was turned over a place."""

        def __init__(self, place: float, factor: float) -> None:
            super().__init__()
            self.place = place
            self.factor = factor

    class Panned(Message):
        """It was dragged by a share of its width."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

    class Pointed(Message):
        """The pointer is over a place, or with None has left. `stays`: it was clicked."""

        def __init__(self, place: float | None, stays: bool) -> None:
            super().__init__()
            self.place = place
            self.stays = stays

    class Opened(Message):
        """It was clicked twice."""

        def __init__(self, chart: "Chart") -> None:
            super().__init__()
            self.chart = chart

    def __init__(self, key: str, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.key = key
        self._title = title
        self._picture: Picture | None = None
        self._grip: int | None = None
        """Where the pointer took hold of it, while a button is down."""
        self._dragged = False

    def show(self, picture: Picture) -> None:
        """Draw another picture."""
        self._picture = picture
        self.renew()

    @property
    def heading(self) -> str:
        """What it is called."""
        return self._title

    @property
    def picture(self) -> Picture | None:
        """What it shows now."""
        return self._picture

    @property
    def logarithmic(self) -> bool:
        """Whether the value axis is logarithmic now."""
        return self._picture is not None and self._picture.log

    @property
    def plot_width(self) -> int:
        """Cells of the plot inside frame and labels."""
        return max(0, self.size.width - 2 - _LABELS)

    # --- the pointer ----------------------------------------------------------------------------------

    def _place(self, x: int) -> float | None:
        """The step under a column of the widget, None outside the plot."""
        cell, picture = x - 1 - _LABELS, self._picture
        if picture is None or not picture.lines or not 0 <= cell < self.plot_width:
            return None
        share = (2 * cell + 0.5) / max(2 * self.plot_width - 1, 1)
        return picture.first + share * (picture.last - picture.first)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, 1 / _WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, _WHEEL)

    def _wheel(self, event: events.MouseEvent, factor: float) -> None:
        event.stop()
        if (place := self._place(event.x)) is not None:
            self.post_message(self.Zoomed(place, factor))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._grip, self._dragged = event.x, False
        self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._grip is None:
            self.post_message(self.Pointed(self._place(event.x), stays=False))
        elif event.x != self._grip:
            self.post_message(self.Panned((self._grip - event.x) / max(self.plot_width, 1)))
            self._grip, self._dragged = event.x, True

    def on_mouse_up(self, _event: events.MouseUp) -> None:
        self._grip = None
        self.release_mouse()

    def on_click(self, event: events.Click) -> None:
        if self._dragged:
            return
        if event.chain == 2:
            self.post_message(self.Opened(self))
        elif (place := self._place(event.x)) is not None:
            self.post_message(self.Pointed(place, stays=True))

    def on_leave(self, _event: events.Leave) -> None:
        if self._grip is None:
            self.post_message(self.Pointed(None, stays=False))

    # --- drawing --------------------------------------------------------------------------------------

    def title(self) -> Row:
        picture = self._picture
        spans: list[Span] = [(self._picture.title if self._picture else self._title, "title")]
        if picture is None or not picture.lines:
            return tuple(spans)
        if picture.cursor is not None:
            spans.append((f" @{place_label(picture, picture.cursor)}", "focus"))
        for at, line in enumerate(picture.lines):
            if at:
                spans.append((" ┄" if line.dashed else " ─", line.role))
            if line.label:
                spans.append((f" {line.label}", line.role if at else "muted"))
            spans.append((f" {_value(line, picture.cursor)}", line.role))
        return tuple(spans)

    def note(self) -> Row:
        picture = self._picture
        if picture is None:
            return ()
        words: list[Span] = []
        if picture.level is not None:
            label, value = picture.level
            words.append((f"{label} {setting(value)} ╌", "third"))
        if picture.smoothing != "off":
            words.append((f"smooth {picture.smoothing}", "muted"))
        if picture.log:
            words.append(("log", "muted"))
        return tuple(
            span for at, word in enumerate(words) for span in (*([(" ", "text")] if at else []), word)
        )

    def body(self, width: int, height: int) -> list[Row]:
        picture = self._picture
        plot = width - _LABELS
        if plot < 4 or height < 1:
            return []
        if picture is None or not picture.lines:
            return [*[()] * ((height - 1) // 2), (("not measured yet".center(width), "muted"),)]
        scale = _scale(picture, height)
        codes, roles = _cells(picture, scale, plot, height)
        names = ("text", *_ROLES)
        rows: list[Row] = []
        labels = _labels(scale, height)
        for y in range(height):
            spans: list[Span] = [
                (labels.get(y, "").rjust(_LABELS - 1), "muted"),
                ("┤" if y in labels else "│", "frame"),
            ]
            rows.append((*spans, *_runs(codes[y], roles[y], names)))
        return rows

    def foot(self, width: int) -> Row:
        """The step axis: round steps where they lie."""
        picture = self._picture
        plot = width - _LABELS
        if picture is None or not picture.lines or plot < 8:
            return super().foot(width)
        scale = Scale(picture.first, picture.last, 0, 1, False)
        text = ["─"] * plot
        roles = [self.edge] * plot
        nice = raster.nice_seconds if picture.seconds else raster.nice_step
        step = max(1.0, nice(picture.last - picture.first, max(1, plot // 12)))
        at = np.ceil(picture.first / step) * step
        free = 0
        while at <= picture.last:
            label = axis_label(picture, float(at))
            place = raster.cell_of(float(at), scale, plot)
            if place is not None:
                start = min(max(free, place - len(label) // 2), plot)
                if start + len(label) <= plot and abs(start + len(label) // 2 - place) <= 2:
                    text[start : start + len(label)] = label
                    roles[start : start + len(label)] = ["muted"] * len(label)
                    free = start + len(label) + 1
            at += step
        spans: list[Span] = [("─" * _LABELS, self.edge)]
        start = 0
        for end in range(1, plot + 1):
            if end == plot or roles[end] != roles[start]:
                spans.append(("".join(text[start:end]), roles[start]))
                start = end
        return tuple(spans)


def place_label(picture: Picture, place: float) -> str:
    """A place on the axis in full."""
    return span(place) if picture.seconds else count(int(place))


def axis_label(picture: Picture, place: float) -> str:
    """A place on the axis in few characters."""
    if picture.seconds:
        return span(place).replace(" ", "")
    if place != int(place):
        return tick(place)
    said = 1 if place < 1e3 else 100 if place < 1e5 else 1e3 if place < 1e6 else 1e5
    return count(int(place)) if place % said else short_count(int(place))  # 1,050 is not 1.1k


def _value(line: Line, cursor: float | None) -> str:
    """The newest value, or what was measured nearest to the cursor: a range where history is reduced."""
    if cursor is None:
        return number(float((line.value if line.raw is None else line.raw)[-1]))
    low, high = line.at(cursor) or (np.nan, np.nan)
    return number(low) if number(low) == number(high) else f"{number(low)}‥{number(high)}"


_ROLES = (
    "band",
    "first",
    "second",
    "third",
    "frame",
    "focus",
    *(f"run{at}" for at in range(8)),
    "muted",
    "ok",
    "info",
    "warning",
    "critical",
)


def _scale(picture: Picture, height: int) -> Scale:
    parts: list[F8] = []
    for line in picture.lines:
        first, last = np.searchsorted(line.step, [picture.first, picture.last + 1])
        view = slice(int(first), int(last)) if first < last else slice(None)
        parts.extend(
            given[view] for given in (line.value, line.raw, line.low, line.high) if given is not None
        )
    if picture.level is not None:
        parts.append(np.array([picture.level[1]]))
    low, high = raster.value_range(parts, picture.log, height)
    return Scale(picture.first, picture.last, low, high, picture.log)


def _crowded(line: Line, picture: Picture, width: int) -> bool:
    """Whether several points fall into each column of dots."""
    first, last = np.searchsorted(line.step, [picture.first, picture.last])
    return int(last - first) > 3 * width


def _labels(scale: Scale, height: int) -> dict[int, str]:
    """Where the value axis is labelled: its ends, and its middle where there is room."""
    places = [0, height - 1] if height < 7 else [0, height // 2, height - 1]
    labels = {}
    for y in places if height > 1 else [0]:
        # The middle of a row of cells is what its label stands for.
        share = 1 - (4 * y + 1.5) / (4 * height - 1) if 0 < y < height - 1 else float(y == 0)
        value = scale.low + share * (scale.high - scale.low)
        labels[y] = tick(float(f"{10**value:.1e}") if scale.log else value)
    return labels


def _cells(
    picture: Picture, scale: Scale, width: int, height: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Characters and roles (1 + place in `_ROLES`, 0: none) of the plot, [height, width] each."""
    dots = np.zeros((height, width), dtype=np.uint8)
    roles = np.zeros((height, width), dtype=np.int64)

    def draw(step: Places, value: F8, role: str, dashed: bool = False, ridge: bool = False) -> None:
        put(raster.dots(step, value, scale, width, height, dashed, ridge), role)

    def put(picture: npt.NDArray[np.bool_], role: str) -> None:
        new = raster.cells(picture)
        roles[new > 0] = 1 + _ROLES.index(role)
        np.bitwise_or(dots, new, out=dots)

    main, *others = picture.lines
    crowded = _crowded(main, picture, width)
    for line in picture.lines:
        if line.raw is not None:
            draw(line.step, line.raw, "band")
        if line.low is not None and line.high is not None:
            put(raster.band(line.step, line.low, line.high, scale, width, height), "band")
    if crowded:  # its range, with its mean as a ridge through it
        draw(main.step, main.value, "band")
    for line in others:
        draw(line.step, line.value, line.role, line.dashed)
    draw(main.step, main.value, main.role, main.dashed, ridge=crowded)
    codes = np.where(dots > 0, raster.BRAILLE + dots.astype(np.uint32), _BLANK).astype(np.uint32)

    if picture.level is not None:
        share = float(scale.heights(np.array([picture.level[1]]))[0])
        if 0 <= share <= 1:
            y = min(height - 1, int((1 - share) * height))
            free = (codes[y] == _BLANK) | (roles[y] == 1 + _ROLES.index("band"))
            codes[y, free], roles[y, free] = ord("╌"), 1 + _ROLES.index("third")
    for order, line in enumerate(picture.lines):
        if line.sign and (spot := _sign_spot(line, order, picture, scale, width, height)) is not None:
            codes[spot], roles[spot] = ord(line.sign), 1 + _ROLES.index(line.role)
    for mark in picture.marks:
        at = raster.cell_of(mark.step, scale, width)
        if at is not None:  # a flag on a pole
            codes[0, at], roles[0, at] = ord(mark.glyph), 1 + _ROLES.index(mark.role)
            free = codes[:, at] == _BLANK
            role = "critical" if mark.role == "critical" else "frame"
            codes[free, at], roles[free, at] = ord("┊"), 1 + _ROLES.index(role)
    if picture.cursor is not None and (at := raster.cell_of(picture.cursor, scale, width)) is not None:
        free = codes[:, at] == _BLANK
        free |= (codes[:, at] == ord("┊")) | (roles[:, at] == 1 + _ROLES.index("band"))
        codes[free, at], roles[free, at] = ord("│"), 1 + _ROLES.index("focus")
    for line in picture.lines:
        for step in line.step[~np.isfinite(line.value)]:
            at = raster.cell_of(float(step), scale, width)
            if at is not None:
                codes[0, at], roles[0, at] = ord("✖"), 1 + _ROLES.index("critical")
    return codes, roles


def _sign_spot(
    line: Line, order: int, picture: Picture, scale: Scale, width: int, height: int
) -> tuple[int, int] | None:
    """Where a line wears its sign, (row, column): each a bit further on, so that none hides another."""
    view = line.step[(line.step >= picture.first) & (line.step <= picture.last)]
    if not len(view):
        return None
    share = (order + 1) / (len(picture.lines) + 1)
    place = float(view[0] + share * (view[-1] - view[0]))
    at, up = (
        raster.cell_of(place, scale, width),
        float(scale.heights(np.array([np.interp(place, line.step, line.value)]))[0]),
    )
    if at is None or not 0 <= up <= 1:
        return None
    return min(height - 1, int((1 - up) * height)), at


def _runs(codes: npt.NDArray[np.uint32], roles: npt.NDArray[np.int64], names: tuple[str, ...]) -> list[Span]:
    """A row of cells as texts of one role each."""
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    cuts = [0, *(np.flatnonzero(np.diff(roles)) + 1).tolist(), len(text)]
    return [(text[a:b], names[int(roles[a])]) for a, b in pairwise(cuts)]
