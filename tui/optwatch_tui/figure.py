"""A chart as a drawing of its own: SVG with lines, axes, level, marks and legend. Pure."""

from html import escape

import numpy as np

from optwatch_tui import formats, raster
from optwatch_tui.charts import Line, Picture
from optwatch_tui.formats import plain
from optwatch_tui.history import F8
from optwatch_tui.look import Places
from optwatch_tui.raster import Scale
from optwatch_tui.theme import Palette

_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 36, 56, 44
_MOST = 2_000
"""Points of a line; of more, the lowest and the highest of each piece are drawn."""


def figure(picture: Picture, heading: str, palette: Palette) -> str:
    """The chart as an SVG document."""
    scale = _scale(picture)
    texts = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{palette.background}"/>',
        _text(_LEFT, 24, f"{heading} {picture.title}", palette.text, "start", bold=True),
    ]
    texts += _axes(picture, scale, palette)
    for mark in picture.marks:
        if picture.first <= mark.step <= picture.last:
            x = _x(mark.step, picture)
            colour = palette.colour(mark.role)
            texts.append(
                f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="{colour}" '
                f'stroke-dasharray="2 4"><title>{escape(plain(mark.text))}</title></line>'
            )
            texts.append(_text(x, _TOP - 4, mark.glyph, colour, "middle"))
    if picture.level is not None:
        label, value = picture.level
        y = _y(scale.heights(np.array([value])))[0]
        texts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="{palette.third}" '
            f'stroke-dasharray="8 4"/>'
        )
        texts.append(
            _text(_WIDTH - _RIGHT - 4, y - 4, f"{label} {formats.setting(value)}", palette.third, "end")
        )
    for line in reversed(picture.lines):
        if line.low is not None and line.high is not None:
            texts += _path(line.step, line.low, picture, scale, palette.band, 1, "")
            texts += _path(line.step, line.high, picture, scale, palette.band, 1, "")
        if line.raw is not None:
            texts += _path(line.step, line.raw, picture, scale, palette.band, 1, "")
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        texts += _path(line.step, line.value, picture, scale, palette.colour(line.role), 1.8, dash)
    texts += _legend(picture, palette)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="DejaVu Sans, sans-serif" font-size="13">\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def _scale(picture: Picture) -> Scale:
    parts = []
    for line in picture.lines:
        view = _view(line.step, picture)
        parts += [v[view] for v in (line.value, line.raw, line.low, line.high) if v is not None]
    if picture.level is not None:
        parts.append(np.array([picture.level[1]]))
    low, high = raster.value_range(parts, picture.log, 8)
    return Scale(picture.first, picture.last, low, high, picture.log)


def _view(step: Places, picture: Picture) -> slice:
    """The points in view, and one beyond each edge."""
    first, last = np.searchsorted(step, [picture.first, picture.last])
    return slice(max(0, int(first) - 1), int(last) + 1)


def _x(place: float, picture: Picture) -> float:
    share = (place - picture.first) / max(picture.last - picture.first, 1e-9)
    return float(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))


def _y(share: F8) -> F8:
    return _HEIGHT - _BOTTOM - np.clip(share, -0.02, 1.02) * (_HEIGHT - _TOP - _BOTTOM)


def _path(
    step: Places,
    value: F8,
    picture: Picture,
    scale: Scale,
    colour: str,
    width: float,
    dash: str,
) -> list[str]:
    view = _view(step, picture)
    step, share = step[view], scale.heights(value[view])
    there = ~np.isnan(share)
    step, share = step[there], share[there]
    if len(step) > _MOST:
        step, share = _thinned(step, share)
    if not len(step):
        return []
    edge = _LEFT + (_WIDTH - _LEFT - _RIGHT)
    points = [
        (min(max(_x(float(at), picture), _LEFT), edge), y)
        for at, y in zip(step, _y(share).tolist(), strict=True)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>']


def _thinned(step: Places, share: F8) -> tuple[Places, F8]:
    """The lowest and the highest of each piece, at its first step."""
    starts = np.arange(_MOST // 2) * len(step) // (_MOST // 2)
    pairs = np.stack([np.minimum.reduceat(share, starts), np.maximum.reduceat(share, starts)], axis=1)
    places: Places = np.repeat(step[starts].astype(np.float64), 2)
    return places, pairs.ravel()


def _axes(picture: Picture, scale: Scale, palette: Palette) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    texts = []
    grain = raster.nice_step(scale.high - scale.low, 5)
    if scale.log and scale.high - scale.low >= 2:
        grain = max(1.0, grain)  # whole decades
    at = np.ceil(scale.low / grain - 1e-9) * grain
    while at <= scale.high + 1e-9 * grain:
        y = bottom - (at - scale.low) / (scale.high - scale.low) * (bottom - _TOP)
        value = float(f"{10**at:.2e}") if scale.log else float(at)
        value = 0.0 if abs(value) < 1e-9 * grain and not scale.log else value
        texts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{palette.panel}"/>')
        texts.append(_text(_LEFT - 6, y + 4, formats.tick(value), palette.muted, "end"))
        at += grain
    nice = raster.nice_seconds if picture.seconds else raster.nice_step
    grain = max(1.0, nice(picture.last - picture.first, 8))
    at = np.ceil(picture.first / grain) * grain
    while at <= picture.last:
        label = formats.span(at) if picture.seconds else formats.count(int(at))
        x = _x(at, picture)
        texts.append(
            f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="{palette.frame}"/>'
        )
        texts.append(_text(x, bottom + 20, label, palette.muted, "middle"))
        at += grain
    axis = "time" if picture.seconds else "step"
    texts.append(_text(right, _HEIGHT - 8, axis, palette.muted, "end"))
    texts.append(
        f'<polyline points="{_LEFT},{_TOP} {_LEFT},{bottom} {right},{bottom}" fill="none" '
        f'stroke="{palette.frame}"/>'
    )
    return texts


def _legend(picture: Picture, palette: Palette) -> list[str]:
    texts, x = [], float(_WIDTH - _RIGHT)
    for line in reversed(picture.lines):
        label = plain(line_name(picture, line))
        x -= 8 * len(label)
        texts.append(_text(x, 24, label, palette.colour(line.role), "start"))
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        texts.append(
            f'<line x1="{x - 28:.1f}" y1="20" x2="{x - 6:.1f}" y2="20" '
            f'stroke="{palette.colour(line.role)}" stroke-width="1.8"{dash}/>'
        )
        x -= 44
    return texts


def line_name(picture: Picture, line: Line) -> str:
    """What a line is called outside of its chart."""
    return line.label or picture.title


def _text(x: float, y: float, text: str, colour: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(plain(text))}</text>"
    )
