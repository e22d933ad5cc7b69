"""Policies that are damaged or made up: refused with a reason, never anything else."""

from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from optwatch.policy.load import DEFAULT, PolicyError, default_text, parse_rules
from optwatch.policy.rules import Rules
from optwatch.wire.actions import ACTIONS
from optwatch.wire.findings import KINDS

TEXT = default_text()
LINES = TEXT.splitlines(keepends=True)
WORDS = st.sampled_from(
    [
        "-1",
        "0",
        "1e400",
        "nan",
        '""',
        "[]",
        "{}",
        "true",
        "[[rule]]",
        "[limits]",
        "= ",
        '"""',
        "\n",
        "\0",
        "𝕏",
    ]
)


def check(text: str) -> None:
    with suppress(PolicyError):
        assert isinstance(parse_rules(text, "policy.toml"), Rules)


@settings(max_examples=300)
@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.one_of(WORDS, st.text(max_size=20)))
def test_text_cut_out_and_put_in(at: int, length: int, word: str) -> None:
    check(TEXT[:at] + word + TEXT[at + length :])


@settings(max_examples=100)
@given(st.lists(st.sampled_from(LINES), max_size=30))
def test_lines_in_any_order(lines: list[str]) -> None:
    check("".join(lines))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)


@settings(max_examples=300)
@given(st.sampled_from([*ACTIONS, "format_disk"]), st.dictionaries(st.text(max_size=8), VALUES, max_size=3))
def test_made_up_actions(action: str, args: dict[str, object]) -> None:
    rule = {"name": "r", "why": "w", "when": {"kind": list(KINDS[:2])}, "do": [{"action": action, **args}]}
    check("rule = " + msgspec.json.encode([rule]).decode().replace(":", " = "))


def test_the_shipped_policy_is_untouched() -> None:
    assert parse_rules(TEXT, "policy.toml") == DEFAULT
