"""A glance at a run from within its own process: what a notebook shows of a `Watch`.

The link's thread hands the rows over that it sends anyway, so the training loop does nothing for it.
"""

import html as escape
import math
import threading
from typing import TYPE_CHECKING

import numpy as np

from optwatch.wire.actions import Command
from optwatch.wire.findings import ALARMS, Finding
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import Schema
from optwatch_agent.mirrors import action_line, finding_line

if TYPE_CHECKING:
    from optwatch_agent.agent import Agent

_POINTS = 400
"""Points of the loss that are kept. When they are full each second one goes."""
_MOST_WAITING = 32
"""Batches that are kept before they are looked at."""
_LINES = 8
"""Findings and actions that are shown, the newest."""
_WIDTH, _HEIGHT = 420, 90
_MARKS = {"critical": "#d62728", "warning": "#e08a00", "": "#2a8f3c"}
"""Colours that can be read on white and on black."""


class Glance:
    """The newest value of each column, and the loss of the whole run at some of its steps."""

    def __init__(self) -> None:
        self._newest: dict[str, float] = {}
        self._losses: list[tuple[int, float]] = []
        self._every = 1
        self._columns: tuple[str, ...] = ()
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        """Steps, scalars of these columns and which were logged, not looked at yet: mostly nobody asks."""
        self._lock = threading.Lock()

    def take(self, schema: Schema, blocks: BatchBlocks) -> None:
        """Take the rows of a batch."""
        with self._lock:
            if schema.scalars != self._columns or len(self._waiting) >= _MOST_WAITING:
                self._look()
                self._columns = schema.scalars
            self._waiting.append((blocks.step, blocks.scalars, blocks.logged))

    @property
    def newest(self) -> dict[str, float]:
        """By column, the last value that was logged."""
        with self._lock:
            self._look()
            return dict(self._newest)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Steps and their losses."""
        with self._lock:
            self._look()
            return self._losses

    def _look(self) -> None:
        if not self._waiting:
            return
        step, scalars, logged = (np.concatenate(each) for each in zip(*self._waiting, strict=True))
        self._waiting = []
        for at, name in enumerate(self._columns):
            rows = np.flatnonzero(logged[:, at])
            if not len(rows):
                continue
            self._newest[name] = float(scalars[rows[-1], at])
            if name == "loss":
                rows = rows[step[rows] % self._every == 0]
                self._add(step[rows].tolist(), scalars[rows, at].tolist())

    def _add(self, steps: list[int], losses: list[float]) -> None:
        points = [*self._losses, *zip(steps, losses, strict=True)]
        while len(points) > _POINTS:
            self._every *= 2
            points = [point for point in points if point[0] % self._every == 0]
        self._losses = points


def html(agent: "Agent") -> str:
    """The run as a fragment of HTML that needs nothing else, in the colours of the page around it."""
    who, track, seen = agent.identity, agent.tracks[0], agent.glance
    daemon = "connected" if agent.link.welcomed else "no daemon yet" if not agent.closed else "detached"
    facts = [("step", f"{track.completed:,}"), ("daemon", daemon), ("control", agent.control.state)]
    newest = seen.newest
    facts += [
        (name.replace("_", " "), f"{newest[name]:.4g}")
        for name in ("loss", "val_loss", "grad_norm", "lr", "lr_scale")
        if name in newest
    ]
    facts.append(("measuring takes", f"{agent.overhead:.1%} of the step time"))
    cells = "".join(
        f'<span style="margin-right:1.2em"><span style="opacity:.65">{_text(name)}</span> '
        f"{_text(value)}</span>"
        for name, value in facts
    )
    where = f"rank {who.rank} of {who.world_size}" if who.world_size > 1 else ""
    found = sorted(
        (
            item
            for item in agent.mirroring.known
            if (isinstance(item, Finding) and item.severity in ALARMS)
            or (isinstance(item, Command) and item.step is not None)
        ),
        key=lambda item: item.step or 0,
    )
    return (
        '<div style="font-family:sans-serif;font-size:13px;color:inherit;max-width:60em">'
        f'<div><b>optwatch</b> ▸ <b>{_text(who.name)}</b> <span style="opacity:.65">{_text(who.run[:8])} '
        f"{where}</span></div><div>{cells}</div>{_chart(seen.losses, found)}{_list(found[-_LINES:])}</div>"
    )


def _chart(losses: list[tuple[int, float]], found: list[Finding | Command]) -> str:
    """The loss as a line; a gap where it is not finite."""
    finite = [value for _, value in losses if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    first, last = losses[0][0], max(losses[-1][0], losses[0][0] + 1)
    low, high = min(finite), max(finite)
    logarithmic = low > 0 and high > 20 * sorted(finite)[len(finite) // 2]
    scale = math.log if logarithmic else float
    span = (scale(high) - scale(low)) or 1.0
    lines: list[list[str]] = [[]]
    for step, value in losses:
        if not math.isfinite(value):
            lines.append([])
            continue
        x = (step - first) / (last - first) * _WIDTH
        y = (1 - (scale(value) - scale(low)) / span) * (_HEIGHT - 4) + 2
        lines[-1].append(f"{x:.1f},{y:.1f}")
    marks = ""
    for item in found:
        at = item.onset_step if isinstance(item, Finding) else item.step or 0
        x = (at - first) / (last - first) * _WIDTH
        if 0 <= x <= _WIDTH:
            marks += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" stroke="{_colour(item)}"/>'
    drawn = "".join(f'<polyline points="{" ".join(line)}"/>' for line in lines if line)
    label = f"loss from step {first:,} to {last:,}, between {low:.4g} and {high:.4g}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'style="display:block;margin:.4em 0"><title>{label}</title>{marks}'
        f'<g fill="none" stroke="currentColor" stroke-width="1.3">{drawn}</g></svg>'
        f'<div style="opacity:.65">{label}{" (log)" if logarithmic else ""}</div>'
    )


def _list(found: list[Finding | Command]) -> str:
    rows = "".join(
        f'<li><span style="color:{_colour(item)}">■</span> '
        f"{_text(finding_line(item) if isinstance(item, Finding) else action_line(item))}</li>"
        for item in found
    )
    return f'<ul style="margin:.4em 0;padding-left:1em;list-style:none">{rows}</ul>' if rows else ""


def _colour(item: Finding | Command) -> str:
    return _MARKS.get(item.severity if isinstance(item, Finding) else "", _MARKS[""])


def _text(text: str) -> str:
    return escape.escape(text)
