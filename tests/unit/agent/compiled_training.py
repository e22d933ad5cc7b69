"""A training of its own process, watched with the compiled pass and plain: both end on the same bits."""

from typing import Any

import numpy as np
import torch
from torch import nn

import optwatch
from optwatch_agent import probe
from optwatch_agent.compiled import COMPILER, directory
from optwatch_agent.kernels import Kernels
from optwatch_agent.roles import roles_of
from tests.unit.agent.models import batches, classifier, fingerprint
from tests.unit.agent.observed import measure_always, samples_of

STEPS = 40


class Counted(Kernels):
    """The compiled pass, and how often it measured."""

    count = 0

    def measure(self, *arguments: Any) -> tuple[float, float]:
        self.count += 1
        return super().measure(*arguments)


def training(watched: bool) -> list[Any]:
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = optwatch.attach(optimizer, model=model) if watched else None
    taken: dict[int, probe.Sample] = {}
    counted = None
    if watch is not None:
        assert COMPILER.kernels is not None, COMPILER.why_not
        COMPILER.kernels = counted = Counted(directory())
        measure_always(watch)
        taken = samples_of(watch)
    data = batches()
    for step in range(1, STEPS + 1):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step in taken:
            COMPILER.kernels = None
            base = probe.measure(optimizer, list(model.parameters()), roles_of(optimizer))
            COMPILER.kernels = counted
            np.testing.assert_allclose(taken[step].stats, base.stats, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(taken[step].counts, base.counts)
    if watch is not None and counted is not None:
        watch.detach()
        assert counted.count == len(taken) >= STEPS - 3  # the first steps are no samples
    return fingerprint(model, optimizer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert training(watched=True) == training(watched=False)
