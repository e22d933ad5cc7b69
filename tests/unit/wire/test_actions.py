"""What is wrong with an action is said in a sentence."""

import re
from typing import Any

import pytest

from optwatch.wire.actions import ACTIONS, parse_action


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        (
            "explode",
            {},
            f"unknown action 'explode': it is one of {', '.join(ACTIONS)}",
        ),
        ("rollback", {"to_step": -1}, "rollback: to_step is wrong: expected int >= 0"),
        ("snapshot", {"to_step": 3}, "snapshot: Object contains unknown field to_step"),
        ("restart", {"warmup": -3}, "restart: warmup is wrong: expected int >= 0"),
        ("clip", {"max_norm": -1.0}, "clip: max_norm is wrong: expected float > 0.0"),
        ("clip", {}, 'clip needs either a max_norm (a number or "auto") or off'),
        ("scale_lr", {"factor": 0.5, "reset": True}, "scale_lr needs either a factor (such as 0.5) or reset"),
        ("clip", {"max_norm": float("inf")}, "clip: max_norm is wrong: expected float <= 1e+30"),
        ("perturb", {}, "perturb needs either a std (such as 0.01) or off"),
        ("perturb", {"std": float("nan")}, "perturb: std is wrong: expected float > 0.0"),
        ("stop", {"at": 7}, "stop: Object contains unknown field at"),
        ("restart", {"factor": 2}, "restart: Object contains unknown field factor"),
    ],
)
def test_a_wrong_action_is_told_in_a_sentence(name: str, args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse_action(name, args)
