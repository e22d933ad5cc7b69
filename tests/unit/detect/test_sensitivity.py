"""How sensitive a net is at its start, from gradients and parameters that are made up and real ones."""

import numpy as np
import pytest
import torch
from torch import nn

from optwatch.detect.panel import Panel
from optwatch.series.points import Samples
from optwatch.wire.findings import Finding
from optwatch.wire.messages import STATS
from optwatch_agent.probe import measure
from optwatch_agent.roles import roles_of
from tests.unit.detect.series import falling, points


def found(at: int, gradient: float, weight: float = 0.1, loss: float = 2.3) -> tuple[Finding, ...]:
    """What is found with one sample, of two layers of 1,000 elements."""
    samples = Samples(
        step=np.array([at], np.int64),
        names=("a.weight", "b.weight"),
        numel=np.array([1_000, 1_000]),
        stats={
            "grad_rms": np.array([[gradient / 1_000, gradient]], np.float32),
            "param_rms": np.array([[weight, weight]], np.float32),
        },
        counts={},
    )
    panel = Panel("run")
    panel.update(points(loss=falling(100) * loss / 2.3, samples=samples))
    return tuple(finding for finding in panel.findings if finding.kind == "exploding_gradient")


def test_a_layer_that_rules_the_loss_is_named_with_its_sensitivity() -> None:
    (finding,) = found(at=1, gradient=0.5)
    assert (finding.severity, finding.tensor, finding.step) == ("info", "b.weight", 1)
    loss = falling(100)[0]
    assert finding.evidence["sensitivity"] == pytest.approx(1_000 * 0.5 * 0.1 / loss, rel=1e-5)
    assert finding.causes[0].cause == "bad_init"


def test_the_unit_of_the_loss_makes_no_difference() -> None:
    (small,), (large,) = found(1, 5e-4, loss=2.3e-3), found(1, 500.0, loss=2.3e3)
    assert small.evidence["sensitivity"] == pytest.approx(large.evidence["sensitivity"], rel=1e-5)


def test_a_usual_start_a_late_sample_and_a_loss_of_zero_are_left_in_peace() -> None:
    assert not found(at=1, gradient=0.01)
    assert not found(at=60, gradient=0.5)
    assert not found(at=1, gradient=0.5, loss=0.0)


@pytest.mark.parametrize("gain", [None, 4.0])
def test_a_recurrent_net_whose_weights_are_too_large(gain: float | None) -> None:
    torch.manual_seed(0)
    model = nn.RNN(8, 48, num_layers=3)
    for name, weight in model.named_parameters():
        if gain is not None and "weight_hh" in name:
            nn.init.orthogonal_(weight, gain=gain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    last = model(torch.randn(12, 64, 8))[0][-1]
    loss = nn.functional.cross_entropy(last, torch.arange(64) % 48)
    loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    sample = measure(optimizer, parameters, roles_of(optimizer))
    samples = Samples(
        step=np.array([1], np.int64),
        names=tuple(name for name, _ in model.named_parameters()),
        numel=np.array([p.numel() for p in parameters]),
        stats={name: sample.stats[None, :, i] for i, name in enumerate(STATS)},
        counts={},
    )
    panel = Panel("run")
    panel.update(points(loss=[float(loss.detach())], samples=samples))
    assert any("sensitivity" in finding.evidence for finding in panel.findings) is (gain is not None)
