"""Numbers and times as people read them, in few characters."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from optwatch.wire.actions import Command
from optwatch.wire.requests import RankInfo


def number(value: float | None) -> str:
    """Four significant digits in at most 8 characters: 2.314, 0.0031, 1.2e-05, 18420; `-` for none."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.3f}" if size < 10 else f"{value:.2f}"
    return f"{value:.3g}"


def setting(value: float | None) -> str:
    """A number that somebody chose, without trailing zeros: 0.5, 1, 3e-4."""
    if value is None:
        return "-"
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


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


def count(value: int) -> str:
    """18420 → 18,420."""
    return f"{value:,}"


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


def plain(text: str) -> str:
    """A text from the wire without anything that could drive the terminal or break a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "�" if unicodedata.category(c) != "Zl" else " " for c in text)


def short_id(run: str) -> str:
    return f"#{run[:4]}"


def action(name: str, args: Mapping[str, Any]) -> str:
    """An action in a few words: scale_lr × 0.5, clip to 1, restart."""
    if name == "scale_lr":
        if args.get("reset"):
            return "LR scale back to 1"
        ramp = f" over {args['ramp']} steps" if args.get("ramp") else ""
        return f"LR × {setting(args.get('factor'))}{ramp}"
    if name == "clip":
        if args.get("off"):
            return "clip off"
        limit = args.get("max_norm")
        return f"clip at {limit if isinstance(limit, str) else setting(limit)}"
    if name == "restart":
        moments = args.get("moments", "all")
        which = "" if moments == "all" else f" {moments} moments"
        warmup = f", warm-up {args['warmup']}" if args.get("warmup") else ""
        return f"restart{which}{warmup}"
    if name == "perturb":
        if args.get("off"):
            return "noise off"
        on = "parameters" if args.get("target") == "param" else "gradients"
        return f"noise of σ = {setting(args.get('std'))} on the {on}"
    if name == "rollback":
        to = args.get("to_step", "last-good")
        rng = ", with random generators" if args.get("rng") else ""
        return f"rollback to {f'step {count(to)}' if isinstance(to, int) else 'the last good snapshot'}{rng}"
    return " ".join((name, *(f"{key}={value}" for key, value in args.items())))


def command(entry: Command) -> str:
    """What a command does, or that it takes another one back."""
    if entry.undo_of is not None:
        return f"undo {entry.undo_of}: {action(entry.action, entry.args)}"
    return action(entry.action, entry.args)


def links(ranks: tuple[RankInfo, ...], world_size: int) -> str:
    """How many ranks are heard: 4/4."""
    return f"{sum(rank.link == 'up' for rank in ranks)}/{world_size}"
