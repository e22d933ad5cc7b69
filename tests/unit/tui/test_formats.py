import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optwatch_tui import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (2.3141, "2.314"),
        (18420.0, "18420"),
        (123456.0, "1.2e5"),
        (0.00002, "2e-5"),
        (-0.5, "-0.5"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert formats.number(value) == text


@given(st.floats(-1e307, 1e307) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_numbers_are_short_and_right(value: float) -> None:
    text = formats.number(value)
    assert len(text) <= 9
    if math.isfinite(value):
        assert math.isclose(float(text), value, rel_tol=0.06)


@given(st.floats(min_value=0, max_value=1e30))
def test_ticks_fit_their_column(value: float) -> None:
    assert len(formats.tick(value)) <= 6


@given(st.integers(min_value=0, max_value=10**12))
def test_short_counts_fit_five_cells(value: int) -> None:
    assert len(formats.short_count(value)) <= 5


def test_short_counts_of_neighbouring_ticks_differ() -> None:
    assert [formats.short_count(at) for at in (11_500, 12_000, 99_960, 250_400)] == [
        "11.5k",
        "12k",
        "100k",
        "250k",
    ]


def test_spans() -> None:
    assert [formats.span(s) for s in (-1, 59, 61, 7500, 100_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "2 h 05",
        "1 d 3 h",
    ]


def test_rates_turn_into_seconds_where_steps_are_slow() -> None:
    assert formats.rate(9.831) == "9.83 it/s"
    assert formats.rate(0.25) == "4 s/it"
    assert formats.rate(None) == formats.rate(0.0) == "- it/s"


def test_nothing_from_the_wire_drives_the_terminal() -> None:
    assert formats.plain("a\x1b[31mb\nc\x07") == "a�[31mb�c�"
    assert formats.plain("größe_λ ×") == "größe_λ ×"


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("scale_lr", {"factor": 0.5, "ramp": 50}, "LR × 0.5 over 50 steps"),
        ("scale_lr", {"reset": True}, "LR scale back to 1"),
        ("clip", {"max_norm": "auto"}, "clip at auto"),
        ("clip", {"max_norm": 1.0}, "clip at 1"),
        ("clip", {"off": True}, "clip off"),
        ("restart", {}, "restart"),
        ("restart", {"moments": "first", "warmup": 10}, "restart first moments, warm-up 10"),
        ("rollback", {"to_step": 5}, "rollback to step 5"),
        ("rollback", {"rng": True}, "rollback to the last good snapshot, with random generators"),
        ("something", {"new": 5}, "something new=5"),
    ],
)
def test_actions_in_words(name: str, args: dict[str, object], text: str) -> None:
    assert formats.action(name, args) == text
