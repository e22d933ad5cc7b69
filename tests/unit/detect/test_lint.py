"""Set-up hints."""

import pytest

from optwatch.detect.panel import Panel
from optwatch.wire.messages import ConfigValue, GroupInfo, OptimizerInfo


def causes(kind: str, **options: ConfigValue) -> list[str]:
    panel = Panel("run")
    optimizer = OptimizerInfo(name="main", kind=kind, groups=(GroupInfo(options, 1, 10),), digest="")
    found = panel.setup([optimizer])
    assert all((finding.kind, finding.severity) == ("misconfigured_optimizer", "info") for finding in found)
    assert panel.setup([optimizer]) == []  # once is enough
    return [finding.causes[0].cause for finding in found]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("AdamW", {"lr": 1e-3, "betas": "(0.9, 0.999)", "eps": 1e-8, "weight_decay": 0.1}, []),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}, []),
        ("Adam", {"lr": 1e-3, "weight_decay": 0.01}, ["weight_decay"]),
        ("Adam", {"lr": 1e-3, "weight_decay": 0.01, "decoupled_weight_decay": True}, []),
        ("Adam", {"lr": 1e-3, "beta1": 0.9, "beta2": 0.5}, ["betas"]),
        ("Adam", {"lr": 1e-3, "betas": "(0.99, 0.95)"}, ["betas"]),
        ("Adam", {"lr": 1e-3, "betas": "(0.9, 0.999)", "eps": 1e-2}, ["epsilon"]),
        ("AdamW", {"lr": 0.3}, ["lr_too_high"]),
        ("SGD", {"lr": 1e-5}, ["lr_too_low"]),
        ("SGD", {"lr": 0.5}, ["lr_too_high"]),
        ("AdamW", {"lr": 3e-3}, []),
        ("AdamW", {"lr": 5e-3}, ["lr_too_high"]),
        ("AdamW", {"lr": 5e-6}, ["lr_too_low"]),
        ("Lion", {"lr": 3e-4}, []),
        ("Lion", {"lr": 3e-3}, ["lr_too_high"]),
        ("Mine", {"lr": 1e5, "betas": "none"}, []),
    ],
)
def test_hints(kind: str, options: dict[str, ConfigValue], expected: list[str]) -> None:
    assert causes(kind, **options) == expected


def test_where_several_optimizers_train_the_range_of_a_gan_is_named() -> None:
    group = (GroupInfo({"lr": 0.01}, 1, 10),)
    pair = [OptimizerInfo(name=name, kind="Adam", groups=group, digest="") for name in ("G", "D")]
    found = Panel("run").setup(pair)
    assert len(found) == 2
    assert all("0.0001 to 0.0003 in a GAN" in finding.remedies[0].why for finding in found)


def infos(group: GroupInfo, **changes: object) -> list[str]:
    optimizer = OptimizerInfo(name="main", kind="AdamW", groups=(group,), digest="", **changes)
    return [finding.summary for finding in Panel("run").setup([optimizer])]


def test_an_epsilon_that_is_zero_in_half_precision_is_hinted_at() -> None:
    options: dict[str, ConfigValue] = {"lr": 1e-3, "betas": "(0.9, 0.999)", "eps": 1e-8}
    (told,) = infos(GroupInfo(options, 1, 10, half=True))
    assert "ε = 1e-08 is zero in float16" in told
    assert infos(GroupInfo(options | {"eps": 1e-6}, 1, 10, half=True)) == []
    assert infos(GroupInfo(options, 1, 10)) == []


def test_parameters_that_are_in_no_optimizer_or_in_it_twice_are_named() -> None:
    group = GroupInfo({"lr": 1e-3}, 3, 10, twice=1)
    missing, twice = infos(group, missing=("head.weight", "head.bias"))
    assert "head.weight, head.bias" in missing
    assert "listed twice" in twice


def test_what_all_groups_have_in_common_is_said_once() -> None:
    """As where each parameter has a group, or an optimizer, of its own."""
    high, coupled = GroupInfo({"lr": 0.01}, 1, 10), GroupInfo({"lr": 1e-3, "weight_decay": 0.1}, 1, 10)
    optimizer = OptimizerInfo(name="main", kind="Adam", groups=(high, high, coupled, high), digest="")
    panel = Panel("run")
    assert [finding.summary for finding in panel.setup([optimizer])] == [
        "main, group 0: an LR of 0.01 is above what Adam is usually used with (1e-05 to 0.003)"
        " (and 2 more groups)",
        "main, group 2: Adam with weight_decay 0.1 adds the decay to the gradient,"
        " where the second moment scales it away",
    ]
    assert panel.setup([optimizer]) == []
