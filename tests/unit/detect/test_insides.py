"""Causes from what was seen of the model's input and activations."""

from typing import Any

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.series.points import Column, Points
from optwatch.wire.findings import Finding, Kind


def findings(loss: Any, **columns: float) -> list[Finding]:
    """What a run with this loss shows, whose other columns were sampled every ten steps."""
    n = len(loss)
    step = np.arange(1, n + 1)
    sampled = step % 10 == 3
    panel = Panel("run")
    panel.update(
        Points(
            step,
            {"loss": Column(np.asarray(loss, dtype=float), np.ones(n, dtype=bool))}
            | {
                name.replace("__", "/"): Column(np.where(sampled, value, np.nan), sampled)
                for name, value in columns.items()
            },
        )
    )
    return list(panel.findings)


def explodes(at: int) -> Any:
    noise = 0.02 * np.random.default_rng(0).standard_normal(at + 20)
    loss = 2.0 + noise
    loss[at:] = 2.0 * 3.0 ** np.arange(1, 21)
    return loss


def stuck() -> Any:
    return 2.3 + 0.01 * np.random.default_rng(0).standard_normal(900)


def causes(found: list[Finding], kind: Kind) -> dict[str, str]:
    (finding,) = [each for each in found if each.kind == kind]
    return {cause.cause: cause.because for cause in finding.causes}


def test_inputs_of_raw_pixels_explain_an_early_divergence() -> None:
    first = next(
        iter(causes(findings(explodes(20), input_mean=120.0, input_std=70.0, input_high=200.0), "divergence"))
    )
    assert first == "unscaled_inputs"
    usual = causes(findings(explodes(20), input_mean=0.1, input_std=1.0, input_high=2.0), "divergence")
    assert next(iter(usual)) == "lr_too_high"


def test_the_scale_of_the_input_does_not_explain_a_late_divergence() -> None:
    late = causes(findings(explodes(400), input_mean=120.0, input_std=70.0, input_high=200.0), "divergence")
    assert "unscaled_inputs" not in late


@pytest.mark.parametrize(
    ("column", "cause", "says"),
    [
        ("dead__net.1", "dead_units", "90% of net.1's units"),
        ("saturated__net.1", "saturated_activations", "90% of net.1's outputs"),
    ],
)
def test_layers_that_do_nothing_explain_a_loss_that_is_stuck(column: str, cause: str, says: str) -> None:
    assert says in causes(findings(stuck(), **{column: 0.9}), "plateau")[cause]
    assert says not in causes(findings(stuck(), **{column: 0.2}), "plateau").get(cause, "")


def test_the_state_carries_what_was_seen() -> None:
    panel = Panel("run")
    step = np.arange(1, 4)
    yes = np.ones(3, dtype=bool)
    panel.update(Points(step, {"loss": Column(np.ones(3), yes), "dead/a": Column(np.full(3, 0.8), yes)}))
    again = Panel("run")
    again.restore(panel.state())
    assert again._evidence.worst("dead/", 2) == ("a", 0.8)
    assert again.state() == panel.state()
