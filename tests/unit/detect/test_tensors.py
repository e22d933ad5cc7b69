"""Single statistics of the tensors."""

import numpy as np
import pytest

from optwatch.detect.panel import Panel
from optwatch.series.points import Samples
from tests.unit.detect.series import falling, points


@pytest.mark.parametrize(("zeros", "text"), [(1_000, "all of"), (955, "95.5% of")])
def test_a_dead_layer_is_named_with_its_share_of_zeros(zeros: int, text: str) -> None:
    step = np.arange(10, 601, 10, dtype=np.int64)
    samples = Samples(
        step=step,
        names=("a", "b"),
        numel=np.array([1_000, 1_000]),
        stats={},
        counts={"grad_zeros": np.tile(np.array([0, zeros], np.uint64), (len(step), 1))},
    )
    panel = Panel("run")
    panel.update(points(loss=falling(600), samples=samples))
    (finding,) = panel.findings
    assert (finding.kind, finding.tensor) == ("dead_parameters", "b")
    assert finding.summary == f"b: {text} the gradient's elements are zero"
