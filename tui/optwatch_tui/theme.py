"""Colours and glyphs: what each role looks like, in light, dark and high contrast.

Colour never stands alone: every state has a glyph of its own. The hues of the lines and of the
severities are Okabe and Ito's (2008), told apart with any of the common colour vision deficiencies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from rich.color import Color
from rich.style import Style
from textual.theme import Theme

SEVERITY_GLYPHS = {"watch": "·", "info": "○", "warning": "▲", "critical": "✖"}
COMMAND_GLYPHS = {
    "proposed": "?",
    "sent": "…",
    "scheduled": "◔",
    "applied": "✓",
    "judged": "✓",
    "dismissed": "–",
    "refused": "✗",
    "expired": "✗",
    "failed": "✗",
    "undone": "↶",
}
STATE_GLYPHS = {"live": "●", "stale": "◌", "ended": "■", "connecting": "◌", "lost": "✖"}
RANK_GLYPHS = {"up": "●", "suspect": "◌", "down": "✖", "left": "■"}


RAMP_LEVELS = 24


@dataclass(frozen=True, eq=False)  # told apart by identity: it is looked up for each piece of text
class Palette:
    """The colours of one theme. `ramp`: from quiet to loud, for heat maps."""

    name: str
    dark: bool
    background: str
    panel: str
    text: str
    muted: str
    frame: str
    focus: str
    first: str
    band: str
    second: str
    third: str
    ok: str
    watch: str
    info: str
    warning: str
    critical: str
    ramp: tuple[str, ...]
    runs: tuple[str, ...]
    """Of runs over one another; each has its number on it, too."""

    def colour(self, role: str) -> str:
        """The colour of a role, of a level of the ramp (`ramp0` …) or of a compared run (`run0` …)."""
        if role.startswith("ramp"):
            return _ramp_colour(self.ramp, int(role[4:]))
        if role.startswith("run"):
            return self.runs[int(role[3:]) % len(self.runs)]
        return str(getattr(self, _COLOUR.get(role, role)))


DARK = Palette(
    name="optwatch-dark",
    dark=True,
    background="#101418",
    panel="#1b2229",
    text="#d8dee4",
    muted="#8593a0",
    frame="#3a4652",
    focus="#56b4e9",
    first="#56b4e9",
    band="#2c5f80",
    second="#e69f00",
    third="#c483a7",
    ok="#1fbf92",
    watch="#8593a0",
    info="#56b4e9",
    warning="#f0b429",
    critical="#ff7043",
    ramp=("#1b2a3d", "#1f3f5f", "#245a80", "#2a7a96", "#3d9b98", "#73b784", "#b9cc6a", "#f4df63"),
    runs=("#56b4e9", "#e69f00", "#1fbf92", "#cc79a7", "#f0e442", "#ff7043", "#9a8cff", "#d8dee4"),
)
LIGHT = Palette(
    name="optwatch-light",
    dark=False,
    background="#fbfbf9",
    panel="#eceef0",
    text="#1c2126",
    muted="#5d6873",
    frame="#b9c1c9",
    focus="#0066a8",
    first="#0066a8",
    band="#9cc3de",
    second="#a85d00",
    third="#6f1f72",
    ok="#00724f",
    watch="#5d6873",
    info="#0066a8",
    warning="#806e00",
    critical="#8e0018",
    ramp=("#eef3dc", "#d3e6bd", "#a9d3ab", "#78bba3", "#4a9ca0", "#2b7a94", "#1d577e", "#163560"),
    runs=("#0066a8", "#ab6203", "#00724f", "#9c3f75", "#564c15", "#8c662b", "#5a45c8", "#1c2126"),
)
CONTRAST = Palette(
    name="optwatch-contrast",
    dark=True,
    background="#000000",
    panel="#000000",
    text="#ffffff",
    muted="#d0d0d0",
    frame="#909090",
    focus="#ffff00",
    first="#6fd0ff",
    band="#3f7fa8",
    second="#ffc000",
    third="#e584c6",
    ok="#3dffb0",
    watch="#d0d0d0",
    info="#6fd0ff",
    warning="#ffd000",
    critical="#ff8055",
    ramp=("#202020", "#303a60", "#3a5a90", "#4080b0", "#50a8c0", "#90d0a0", "#d8f070", "#ffff00"),
    runs=("#6fd0ff", "#ffc000", "#3dffb0", "#ff9fe0", "#ffff66", "#ff8055", "#b0a0ff", "#ffffff"),
)
PALETTES = {palette.name: palette for palette in (DARK, LIGHT, CONTRAST)}


def textual_theme(palette: Palette) -> Theme:
    """The same colours for what Textual itself draws: inputs, the palette, toasts."""
    return Theme(
        name=palette.name,
        dark=palette.dark,
        primary=palette.focus,
        secondary=palette.third,
        accent=palette.focus,
        foreground=palette.text,
        background=palette.background,
        surface=palette.panel,
        panel=palette.panel,
        success=palette.ok,
        warning=palette.warning,
        error=palette.critical,
    )


_BOLD = frozenset({"title", "value", "critical", "key"})
_COLOUR = {"title": "text", "value": "text", "key": "focus"}


@lru_cache(maxsize=256)
def ink(palette: Palette, role: str) -> Style:
    """The style of a role: a colour of the palette, `title`, `value`, `key`, or `ramp0` … `ramp23`.

    A role that ends in `@` is the same one in the selected line.
    """
    name = role.removesuffix("@")
    return Style(
        color=Color.parse(palette.colour(name)),
        bgcolor=Color.parse(palette.panel if role.endswith("@") else palette.background),
        bold=name in _BOLD,
        reverse=role.endswith("@") and palette.panel == palette.background,
    )


def first_palette(environ: Mapping[str, str]) -> Palette:
    """Light where the terminal says that its background is light ($COLORFGBG), dark otherwise."""
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT if background in ("7", "15") else DARK


def _ramp_colour(anchors: tuple[str, ...], level: int) -> str:
    """The colour of a level, mixed from the two anchors it lies between."""
    place = level / (RAMP_LEVELS - 1) * (len(anchors) - 1)
    low = min(int(place), len(anchors) - 2)
    below, above = (Color.parse(anchor).get_truecolor() for anchor in anchors[low : low + 2])
    share = place - low
    mixed = (round(b + share * (a - b)) for b, a in zip(below, above, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def palette_of(theme: str) -> Palette:
    """The palette behind the name of the theme in force."""
    return PALETTES.get(theme, DARK)
