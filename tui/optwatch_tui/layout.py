"""What a run's screen shows at which size: what matters most first. Pure."""

from dataclasses import dataclass

_TOP = 2
_BOTTOM = 1


@dataclass(frozen=True)
class Arrangement:
    """Lines for each row of panels (0: none) and which charts stand in the first two."""

    upper: int
    lower: int
    heat: int
    lists: int
    upper_charts: tuple[str, ...]
    lower_charts: tuple[str, ...]
    actions: bool
    """Whether the actions have a panel of their own beside the findings."""


UPPER = ("loss", "grad_norm")
_LOWER = ("lr", "update_ratio", "moments", "step_time", "rms_t")


def arrange(width: int, height: int) -> Arrangement:
    """The best use of a terminal: loss, gradient norm and findings always, the rest as room allows."""
    room = max(3, height - _TOP - _BOTTOM)
    upper_charts = UPPER if width >= 60 else UPPER[:1]
    lower_charts = _LOWER[: max(1, min(len(_LOWER), width // 38))]
    actions = width >= 70
    if room < 9:
        return Arrangement(room, 0, 0, 0, upper_charts, (), actions)
    if room < 18:
        lists = max(4, room * 2 // 5)
        return Arrangement(room - lists, 0, 0, lists, upper_charts, (), actions)
    if room < 30:
        lists = max(7, room // 3)
        lower = max(5, (room - lists) * 2 // 5)
        return Arrangement(room - lists - lower, lower, 0, lists, upper_charts, lower_charts, actions)
    lists = room * 5 // 18
    heat = room // 5
    lower = room // 5
    return Arrangement(room - lists - heat - lower, lower, heat, lists, upper_charts, lower_charts, actions)


def alone(height: int, chart: str) -> Arrangement:
    """One chart as large as can be, with the header and the keys."""
    room = max(3, height - _TOP - _BOTTOM)
    if chart in UPPER:
        return Arrangement(room, 0, 0, 0, (chart,), (), False)
    return Arrangement(0, room, 0, 0, (), (chart,), False)
