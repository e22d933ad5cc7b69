"""Commands on parameters that are spread over ranks do what they do to one process that has all of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optwatch.wire.actions import Command
from optwatch_agent.guard import AdaptiveNorm
from tests.daemons import DaemonProcess
from tests.distributed.jobs import START, Job, armed_run, command, until
from tests.distributed.layouts import WIDTH, batch, whole
from tests.distributed.train import LR

CASES = [
    (2, "fsdp"),
    pytest.param(2, "zero", marks=pytest.mark.slow),
    pytest.param(2, "tp", marks=pytest.mark.slow),
    pytest.param(4, "hsdp", marks=pytest.mark.slow),
    pytest.param(4, "fsdp_tp", marks=pytest.mark.slow),
    pytest.param(8, "hsdp_tp", marks=pytest.mark.slow),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "layout"), CASES)
def test_the_training_goes_on_as_an_unsharded_one_would(
    ranks: int, layout: str, daemon: DaemonProcess, tmp_path: Path
) -> None:
    options = ("--layout", layout, "--double", "--truth")
    with Job(tmp_path / "job", ranks, *options) as job, daemon.client() as client:
        run = armed_run(client)
        until(client, lambda c: norms_of(c, run) >= 20 or None, "20 gradient norms", guard=START)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("scale_lr", {"factor": 0.5}),
            ("restart", {}),
            ("clip", {"max_norm": "auto"}),
            ("clip", {"max_norm": 0.02}),
        ]
        done = [command(client, run, action, args) for action, args in asked]
        for one in done:
            assert (one.state, one.ranks_applied) == ("applied", tuple(range(ranks))), one
        assert isinstance(done[2].args["max_norm"], float)
        clipped = done[-1].step
        assert clipped is not None
        until(client, lambda c: c.status(run).step > clipped + 20 or None, "20 clipped steps")
        results = job.end()
        truth = json.loads((tmp_path / "job" / "truth.json").read_text())
        series, blocks = client.series(run)
        at = series.columns.index("grad_norm")
        before = [row for row, step in enumerate(blocks.step) if blocks.logged[row, at] and step < clipped]
        assert len(before) >= 20
        for row in before:
            norm = truth[str(blocks.step[row])]["grad_norm"]
            assert blocks.values[row, at] == pytest.approx(norm, rel=1e-6), blocks.step[row]
    digests: dict[str, str] = {}
    for result in results:
        for key, digest in result["shards"].items():
            assert digests.setdefault(key, digest) == digest, f"replicas of {key} differ"
    wanted = replayed(results[0]["step"], done)
    for name, parameter in wanted.items():
        np.testing.assert_allclose(results[0]["parameters"][name], parameter, rtol=1e-6, atol=1e-12)


def norms_of(client: Any, run: str) -> int:
    """How many steps have a merged gradient norm."""
    series, blocks = client.series(run)
    if "grad_norm" not in series.columns:
        return 0
    return int(blocks.logged[:, series.columns.index("grad_norm")].sum())


def replayed(steps: int, commands: list[Command]) -> dict[str, np.ndarray]:
    """The parameters after the same steps in one process, with what was commanded done in plain torch."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = whole(WIDTH)
        adamw = torch.optim.AdamW(model.parameters(), lr=LR)
        max_norm = adaptive = None
        for step in range(1, steps + 1):
            adamw.zero_grad()
            model(batch(step)).square().mean().backward()
            for one in commands:
                if one.step == step:
                    match one.action:
                        case "scale_lr":
                            adamw.param_groups[0]["lr"] *= one.args["factor"]
                        case "restart":
                            adamw.state.clear()
                        case "clip":
                            max_norm = one.args["max_norm"]
                            adaptive = AdaptiveNorm((), max_norm) if one.args.get("adapt") else None
            if max_norm is not None:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                if adaptive is not None:
                    adaptive.see(min(norm.item(), max_norm))
                    max_norm = adaptive.limit
            adamw.step()
        return {name: p.detach().numpy() for name, p in model.named_parameters()}
    finally:
        torch.set_default_dtype(former)
