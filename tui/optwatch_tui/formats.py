"""Numbers and times as people read them, in few characters."""

import math
from collections.abc import Sequence
from itertools import pairwise

from optwatch.client.words import action as action
from optwatch.client.words import count as count
from optwatch.client.words import number as number
from optwatch.client.words import plain as plain
from optwatch.client.words import setting as setting
from optwatch.wire.actions import Command
from optwatch.wire.requests import RankInfo


def tick(value: float) -> str:
    """A label of an axis, at most 6 characters."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        label = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
        return label if len(label) <= 6 else f"{value:.0e}".replace("e-0", "e-")
    if size < 1:
        return f"{value:.3g}" if len(f"{value:.3g}") <= 6 else f"{value:.3g}".replace("0.", ".", 1)
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def percent(share: float) -> str:
    """A share in at most 5 characters: 31 %, 3.1 %, <.1 %."""
    hundredths = 100 * share
    if 0 < hundredths < 0.1:
        return "<.1 %"
    return f"{hundredths:.0f} %" if hundredths == 0 or hundredths >= 9.95 else f"{hundredths:.1f} %"


def short_count(value: int) -> str:
    """A count in at most 5 characters: 950, 1.2k, 12.5k, 18k, 3.4M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}".replace(".0", "") if scaled < 100 else f"{scaled:.0f}{unit}"
    return str(value)


def span(seconds: float) -> str:
    """A length of time in two parts at most: 8 s, 3 min, 2 h 05, 3 d 4 h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def rate(steps_per_second: float | None) -> str:
    """9.8 it/s, or 4.1 s/it where a step takes more than a second."""
    if steps_per_second is None or not steps_per_second > 0:
        return "- it/s"
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.3g} s/it"
    return f"{steps_per_second:.3g} it/s"


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers as a line of blocks, the newest at the right, ✖ where one is not finite; at most `width`."""
    if len(values) > width:
        cuts = [at * len(values) // width for at in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "✖" * len(values)
    low, size = min(finite), max(max(finite) - min(finite), 1e-12 * abs(max(finite)), 1e-300)
    return "".join(
        "▁▂▃▄▅▆▇█"[min(7, int((value - low) / size * 8))] if math.isfinite(value) else "✖" for value in values
    )


def short_id(run: str) -> str:
    return f"#{run[:4]}"


def command(entry: Command) -> str:
    """What a command does, or that it takes another one back."""
    if entry.undo_of is not None:
        return f"undo {entry.undo_of}: {action(entry.action, entry.args)}"
    return action(entry.action, entry.args)


def links(ranks: tuple[RankInfo, ...], world_size: int) -> str:
    """How many ranks are heard: 4/4."""
    return f"{sum(rank.link == 'up' for rank in ranks)}/{world_size}"
