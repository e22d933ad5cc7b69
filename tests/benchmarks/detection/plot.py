"""The benchmark as one picture: what is found of each fault, and how the published rules compare."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOUR, RULE = "#0072b2", "#d55e00"
"""Blue and vermilion of Okabe and Ito's palette, told apart by the colour-blind."""


def draw(
    path: Path,
    faults: list[tuple[str, int, int, tuple[float, float]]],
    points: list[tuple[str, float, float]],
) -> None:
    """Write a PNG. `faults`: name, found, harmed and the interval of the share; `points`: of each rule the
    share of healthy runs alarmed and of divergences found, ours first."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    bars, dots = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(bars, faults)
    _dots(dots, points)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, faults: list[tuple[str, int, int, tuple[float, float]]]) -> None:
    names = [f"{name} ({harmed})" for name, _, harmed, _ in faults]
    shares = [found / max(harmed, 1) for _, found, harmed, _ in faults]
    low = [
        share - max(min(interval[0], share), 0) for share, (*_, interval) in zip(shares, faults, strict=True)
    ]
    high = [max(interval[1] - share, 0) for share, (*_, interval) in zip(shares, faults, strict=True)]
    axes.barh(names, shares, xerr=[low, high], color=COLOUR, ecolor="#555555", height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("found, of the trainings that a fault harmed")
    axes.set_xlabel("share, with its 95 % interval (Wilson)")


def _dots(axes: Any, points: list[tuple[str, float, float]]) -> None:
    for i, (name, alarmed, found) in enumerate(points):
        axes.plot(alarmed, found, "s" if i == 0 else "o", color=COLOUR if i == 0 else RULE)
        right = alarmed > 0.5
        axes.annotate(
            name, (alarmed, found), (-6 if right else 6, -3 - 10 * (i % 3)),
            textcoords="offset points", fontsize=7, ha="right" if right else "left",
        )  # fmt: skip
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.06)
    axes.set_xlabel("healthy trainings alarmed")
    axes.set_ylabel("divergences found")
    axes.set_title("beside published rules")
