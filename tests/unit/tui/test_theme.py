"""The palettes for eyes of every kind, by simulation, and without any colour.

Dichromacy is simulated with the matrices of Machado, Oliveira and Fernandes (2009), "A physiologically-based
model for simulation of color vision deficiency", severity 1.0, applied to linear RGB. Colours are told
apart by their distance in CIELAB (CIE 1976, D65); contrast is WCAG 2's.
"""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from optwatch_tui.theme import (
    COMMAND_GLYPHS,
    PALETTES,
    RANK_GLYPHS,
    SEVERITY_GLYPHS,
    STATE_GLYPHS,
    Palette,
    first_palette,
    ink,
)

F8 = npt.NDArray[np.float64]

VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)

APART = (
    ("first", "second", "third"),  # lines of one chart
    ("first", "band"),  # a line and its raw one behind
    ("ok", "warning", "critical"),  # how a run is
    ("info", "warning", "critical"),  # severities
)
LEAST = 18.0
"""CIELAB between roles that must be told apart at a glance; 2.3 is just noticeable."""
LEAST_RUNS = 8.0
"""Between compared runs, each of which also has its number on its line."""


def linear(colour: str) -> F8:
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    found: F8 = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return found


def lab(colour: str, vision: F8) -> F8:
    xyz = _XYZ @ np.clip(vision @ linear(colour), 0, 1) / (_XYZ @ np.ones(3))
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one: str, other: str, vision: F8) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((float(_XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_the_simulation_takes_red_and_green_together_and_leaves_greys_alone() -> None:
    red, green = "#c04000", "#607800"
    usual, deuter = (apart(red, green, VISION[name]) for name in ("usual", "deuteranopia"))
    assert deuter < 0.4 * usual
    for vision in VISION.values():
        assert apart("#808080", "#808080", vision) == 0
        assert np.allclose(lab("#808080", vision)[1:], 0, atol=1.0)
    assert np.allclose(lab("#ffffff", VISION["usual"]), [100, 0, 0], atol=0.1)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_roles_are_told_apart(palette: Palette, vision: str) -> None:
    for roles in APART:
        for one, other in combinations(roles, 2):
            distance = apart(palette.colour(one), palette.colour(other), VISION[vision])
            assert distance >= LEAST, f"{one} and {other}: {distance:.1f}"


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_compared_runs_are_told_apart(palette: Palette, vision: str) -> None:
    assert len(palette.runs) == 8
    for one, other in combinations(palette.runs, 2):
        distance = apart(one, other, VISION[vision])
        assert distance >= LEAST_RUNS, f"{one} and {other}: {distance:.1f}"


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_the_ramp_goes_one_way_for_everyone(palette: Palette, vision: str) -> None:
    lightness = [lab(colour, VISION[vision])[0] for colour in palette.ramp]
    steps = np.diff(lightness) * (1 if palette.dark else -1)
    assert (steps > 1.5).all()


@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_text_is_readable(palette: Palette) -> None:
    least = 7.0 if palette.name == "optwatch-contrast" else 4.5
    for role in ("text", "muted", "first", "second", "third", "ok", "info", "warning", "critical", "focus"):
        assert contrast(palette.colour(role), palette.background) >= least, role
    for colour in palette.runs:
        assert contrast(colour, palette.background) >= 4.5


def test_colour_never_stands_alone() -> None:
    for glyphs in (SEVERITY_GLYPHS, STATE_GLYPHS, RANK_GLYPHS):
        assert len(set(glyphs.values())) >= len(glyphs) - 1
    assert len({COMMAND_GLYPHS[state] for state in ("proposed", "scheduled", "applied", "failed")}) == 4


def test_the_first_palette_is_that_of_the_terminal() -> None:
    assert [
        first_palette(environ).name
        for environ in ({}, {"COLORFGBG": "15;0"}, {"COLORFGBG": "0;15"}, {"COLORFGBG": "0;default;7"})
    ] == ["optwatch-dark", "optwatch-dark", "optwatch-light", "optwatch-light"]


def test_a_selected_line_is_seen_in_every_palette() -> None:
    for palette in PALETTES.values():
        assert ink(palette, "text@") != ink(palette, "text")
