"""What speaks for another optimizer."""

import numpy as np
import pytest

from optwatch.detect.base import Signal
from optwatch.detect.causes import causes_of
from optwatch.detect.evidence import Evidence
from optwatch.detect.remedies import remedies_for
from optwatch.series.points import Points, Samples
from optwatch.wire.messages import GroupInfo, OptimizerInfo
from tests.unit.detect.series import points

FLAT = Signal(kind="plateau", step=100, summary="", severity="info", onset_step=100, evidence={"window": 200})
EARLY = Signal(kind="divergence", step=9, summary="", severity="critical", onset_step=8)


def evidence(kind: str, name: str, batch: float = 64.0) -> Evidence:
    """Of an optimizer of this kind over a net with layers of this name."""
    made = Evidence()
    made.setup([OptimizerInfo(name="main", kind=kind, groups=(GroupInfo({}, 1, 10),), digest="")])
    steps = np.arange(1, 101, dtype=np.int64)
    samples = Samples(
        step=steps,
        names=tuple(f"{name}.{i}.weight" for i in range(4)),
        numel=np.full(4, 1_000),
        stats={s: np.full((100, 4), 1e-2, np.float32) for s in ("update_rms", "param_rms", "grad_rms")},
        counts={},
    )
    columns = points(lr=np.full(100, 1e-3), batch_size=np.full(100, batch)).columns
    made.update(Points(steps, columns, samples=samples))
    return made


@pytest.mark.parametrize(
    ("kind", "name", "named"),
    [
        ("SGD", "blocks.self_attn.q_proj", True),
        ("AdamW", "blocks.self_attn.q_proj", False),
        ("AdamW", "layer.conv", True),
        ("SGD", "layer.conv", False),
        ("Adagrad", "layers", False),  # its step has not faded
    ],
)
def test_the_net_and_the_optimizer_speak_for_another_where_the_loss_is_flat(
    kind: str, name: str, named: bool
) -> None:
    causes = [cause.cause for cause in causes_of(FLAT, evidence(kind, name), ())]
    assert ("wrong_optimizer" in causes) == named


@pytest.mark.parametrize(
    ("kind", "batch", "named"), [("AdamW", 8_192, True), ("LAMB", 8_192, False), ("AdamW", 64, False)]
)
def test_a_large_batch_that_diverges_early_speaks_for_lamb(kind: str, batch: float, named: bool) -> None:
    causes = causes_of(EARLY, evidence(kind, "layers", batch), ())
    assert ("wrong_optimizer" in [cause.cause for cause in causes]) == named


def test_the_advice_names_what_does_without_a_warm_up_and_what_large_batches_need() -> None:
    of = evidence("AdamW", "layers", 8_192)
    causes = {cause.cause: cause for cause in causes_of(EARLY, of, ())}
    told = [
        remedy.why
        for name in ("lr_schedule", "wrong_optimizer")
        for remedy in remedies_for(EARLY, (causes[name],), of)
    ]
    assert "RAdam" in told[0]
    assert "LAMB" in told[1]
