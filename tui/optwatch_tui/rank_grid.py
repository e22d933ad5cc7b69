"""What each rank shows, and how a thousand of them lie in a grid. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optwatch.wire.requests import RankInfo
from optwatch_tui import formats
from optwatch_tui.history import F8, I8
from optwatch_tui.theme import RANK_GLYPHS

GAP = 8
"""Ranks after which there is a space."""
UNKNOWN = "·"
"""What was not told: no comm hook, no checksum yet, or a rank that was not heard."""


@dataclass(frozen=True)
class RankStatistic:
    """What the grid can show of a rank. `value`: None where it is not known; the largest is the worst.

    `text`: the value in a list, at most 9 characters. `signs`: for a state, the glyph and role of each
    value; a number has none and is drawn on a ramp.
    """

    key: str
    title: str
    value: Callable[[RankInfo, int], float | None]
    text: Callable[[RankInfo, int], str]
    signs: tuple[tuple[str, str, str], ...] = ()
    """Glyph, role and meaning of the values 0, 1, 2, …"""

    @property
    def short(self) -> str:
        """Its name over a column."""
        return self.key.replace("_", " ")


_PHASES = ("start", "between steps", "forward", "backward", "step", "another")
_PHASE_SIGNS = ("0", "b", "f", "w", "s", "?")
_PHASE_ROLES = ("muted", "ok", "first", "second", "third", "text")
LINKS = ("up", "left", "suspect", "down")
_LINK_ROLES = ("ok", "muted", "warning", "critical")


def _behind(rank: RankInfo, newest: int) -> float:
    return float(newest - rank.step)


def _agreement(rank: RankInfo, _newest: int) -> float | None:
    return None if rank.agrees is None else float(not rank.agrees)


def _agreement_text(rank: RankInfo, _newest: int) -> str:
    if rank.agrees is None:
        return "-"
    return f"{'=' if rank.agrees else '≠'} {formats.short_count(rank.checked_step or 0)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else formats.span(value)


STATISTICS: tuple[RankStatistic, ...] = (
    RankStatistic(
        "link",
        "link",
        lambda rank, _: float(LINKS.index(rank.link)),
        lambda rank, _: rank.link,
        tuple((RANK_GLYPHS[link], role, link) for link, role in zip(LINKS, _LINK_ROLES, strict=True)),
    ),
    RankStatistic("behind", "steps behind", _behind, lambda rank, newest: str(newest - rank.step or "-")),
    RankStatistic(
        "phase",
        "phase",
        lambda rank, _: float(_PHASES.index(rank.phase if rank.phase in _PHASES else "another")),
        lambda rank, _: formats.plain(rank.phase)[:9] or "-",
        tuple(zip(_PHASE_SIGNS, _PHASE_ROLES, _PHASES, strict=True)),
    ),
    RankStatistic(
        "phase_time",
        "time in phase",
        lambda rank, _: rank.phase_time,
        lambda rank, _: _seconds(rank.phase_time),
    ),
    RankStatistic(
        "lateness",
        "lateness to the first bucket",
        lambda rank, _: rank.lateness,
        lambda rank, _: _seconds(rank.lateness),
    ),
    RankStatistic(
        "local_norm",
        "local gradient norm",
        lambda rank, _: rank.local_norm,
        lambda rank, _: formats.number(rank.local_norm),
    ),
    RankStatistic(
        "agrees",
        "replica checksum",
        _agreement,
        _agreement_text,
        (("=", "ok", "agrees"), ("≠", "critical", "differs")),
    ),
    RankStatistic(
        "overhead", "agent's share", lambda rank, _: rank.overhead, lambda rank, _: f"{rank.overhead:.1%}"
    ),
)


def newest_step(ranks: Sequence[RankInfo]) -> int:
    return max((rank.step for rank in ranks), default=0)


def values(ranks: Sequence[RankInfo], statistic: RankStatistic) -> F8:
    """A statistic of each rank, f8[n], NaN where it is not known."""
    newest = newest_step(ranks)
    told = (statistic.value(rank, newest) for rank in ranks)
    return np.array([np.nan if value is None else value for value in told], dtype=np.float64)


def worst_first(ranks: Sequence[RankInfo], statistic: RankStatistic) -> list[RankInfo]:
    """Those not heard first, then by the statistic; what is not known comes last."""
    order = np.nan_to_num(values(ranks, statistic), nan=-np.inf)
    at = sorted(
        range(len(ranks)),
        key=lambda i: (-LINKS.index(ranks[i].link) * (ranks[i].link != "left"), -order[i], ranks[i].rank),
    )
    return [ranks[i] for i in at]


def levels(of: F8, ramp: int) -> I8:
    """The place of each value on a ramp of that many levels, -1 where there is none. Equal values are low."""
    there = np.isfinite(of)
    found = np.full(len(of), -1, dtype=np.int64)
    if there.any():
        half = of[there] / 2  # the difference of two finite numbers may be infinite, that of their halves not
        span = float(half.max() - half.min())
        share = (half - half.min()) / span if span > 0 else np.zeros(len(half))
        found[there] = np.clip((share * ramp).astype(np.int64), 0, ramp - 1)
    found[np.isposinf(of)], found[np.isneginf(of)] = ramp - 1, 0
    return found


@dataclass(frozen=True)
class GridShape:
    """How many ranks stand in a line, in how many lines, and the cells that each takes."""

    across: int
    down: int
    cell: int


def shape(world_size: int, width: int, height: int) -> GridShape:
    """Lines of a power of two, so that hosts stand under one another; as large and as few as fit."""
    fit = [
        GridShape(across, -(-world_size // across), cell)
        for across in (8, 16, 32, 64, 128, 256, 512)
        for cell in (1, 2, 3)
        if across * cell + (across - 1) // GAP <= width
    ]
    return min(
        fit or [GridShape(8, -(-world_size // 8), 1)],
        key=lambda each: (max(0, each.down - height), -each.cell, each.down, each.across),
    )


def details(rank: RankInfo, newest: int) -> list[tuple[str, str]]:
    """All that is known of a rank: label and value; what is not known says so."""
    agreement = {None: "never compared", True: "agrees", False: "DIFFERS"}[rank.agrees]
    if rank.checked_step is not None:
        agreement += f" at step {formats.count(rank.checked_step)}"
    behind = newest - rank.step
    return [
        ("rank", f"{rank.rank} on {formats.plain(rank.host)}:{rank.pid}"),
        ("link", rank.link),
        ("step", formats.count(rank.step) + (f" ({formats.count(behind)} behind)" if behind else "")),
        ("phase", f"{formats.plain(rank.phase) or '-'} for {_seconds(rank.phase_time)}"),
        ("lateness", "not known" if rank.lateness is None else _seconds(rank.lateness)),
        ("local norm", "not known" if rank.local_norm is None else formats.number(rank.local_norm)),
        ("checksum", agreement),
        ("agent", f"{rank.overhead:.1%}, samples 1 in {rank.sample_every}"),
        ("lost", f"{formats.count(rank.dropped)} steps, {formats.count(rank.thinned)} tensor records"),
        ("control", formats.plain(rank.control)),
    ]
