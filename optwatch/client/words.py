"""Numbers, names and actions as people read them, in few characters. Pure."""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any


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


def count(value: int) -> str:
    """18420 → 18,420."""
    return f"{value:,}"


def plain(text: str) -> str:
    """A text from the wire without anything that could drive the terminal or break a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "�" if unicodedata.category(c) != "Zl" else " " for c in text)


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
