"""Policy files: what is shipped, what composes, and what is said about a wrong one."""

from pathlib import Path

import pytest

from optwatch.policy.engine import Engine
from optwatch.policy.load import DEFAULT, PolicyError, default_text, load_rules, parse_rules
from optwatch.policy.rules import Limits
from optwatch.wire.actions import Clip, ScaleLr
from tests.unit.policy.driver import Book, finding, points

RULE = """
[[rule]]
name = "clip it"
why = "because"
when = { any = [{ kind = ["exploding_gradient"] }, { kind = ["divergence"], loss = ["up"] }], \
none = [{ lr = ["risen"] }] }
do = [{ action = "clip", max_norm = "auto" }]
"""


def test_the_shipped_policy_spells_out_the_limits_that_hold_without_a_file() -> None:
    assert DEFAULT.limits == Limits()
    assert len(DEFAULT.rule) == 16
    for field in Limits.__struct_fields__:
        assert f"\n{field} = " in default_text()


def test_a_file_is_loaded_and_its_conditions_compose(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[limits]\ncooldown = 10\n" + RULE)
    rules = load_rules(path)
    assert rules.limits.cooldown == 10
    assert rules.rule[0].do == (Clip(max_norm="auto"),)
    for kind, lr, acts in [
        ("exploding_gradient", 1e-3, True),
        ("exploding_gradient", 3e-2, False),
        ("loss_spike", 1e-3, False),
        ("divergence", 1e-3, True),
    ]:
        book = Book(Engine("auto", rules))
        book.feed(points(1, [1.0] * 299))
        proposals = book.feed(points(300, [5.0] * 4, lr), finding(kind=kind))
        assert [p.action for p in proposals] == (["clip"] if acts else []), kind


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[limits]\ncooldown = 10\nlr_cuts = -1\n", 3, "int` >= 0"),
        ("[limits]\n\ncooldwn = 10\n", 3, "unknown field `cooldwn`"),
        ("# a\n[limit]\ncooldown = 10\n", 2, "unknown field `limit`"),
        (
            RULE + RULE.replace("clip it", "2").replace('"divergence"', '"diverging"'),
            11,
            "rule[1].when.any[1].kind[0]: Invalid enum value 'diverging'",
        ),
        (RULE + RULE, 9, "second rule named 'clip it'"),
        (RULE.replace('why = "because"', ""), 2, "missing required field `why`"),
        (
            RULE.replace('max_norm = "auto"', "max_norm = 0"),
            6,
            "rule[0].do[0].max_norm: Expected `float` > 0",
        ),
        (RULE.replace(', max_norm = "auto"', ""), 6, "clip needs either"),
        (RULE.replace('action = "clip", max_norm = "auto"', 'action = "explode"'), 6, "explode"),
        (RULE.replace('{ action = "clip", max_norm = "auto" }', ""), 6, "length >= 1"),
        ("[limits]\ncooldown = \n", 2, "not TOML"),
        ("rule = 3\n", 1, "array"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_rules(text, "p.toml")
    assert "p.toml" in str(error.value)
    assert f"line {line}" in str(error.value)
    assert says in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot read the policy .*none\.toml: No such file"):
        load_rules(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="UTF-8"):
        load_rules(tmp_path / "binary.toml")


def test_an_lr_cut_in_a_file_is_checked_as_a_command_is() -> None:
    with pytest.raises(PolicyError, match="factor"):
        parse_rules(RULE.replace('"clip", max_norm = "auto"', '"scale_lr", factor = -1'), "p")
    (rule,) = parse_rules(RULE.replace('"clip", max_norm = "auto"', '"scale_lr", factor = 0.5'), "p").rule
    assert rule.do == (ScaleLr(factor=0.5),)
