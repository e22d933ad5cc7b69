"""Parts of tensors, merged by their shard keys, against the whole tensors."""

import math
from pathlib import Path
from typing import Any

import pytest

from optwatch_agent.shards import is_partial, is_sharded, shard_key
from optwatch_agent.tensors import local
from tests.distributed.layouts import LAYOUTS, WIDTH, batch, numel
from tests.distributed.ranks import on_ranks

CASES = [
    pytest.param("ddp", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp", 3, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp", 4, 3, marks=pytest.mark.slow),
    pytest.param("hsdp", 4, WIDTH, marks=pytest.mark.slow),
    pytest.param("tp", 2, WIDTH, marks=pytest.mark.slow),
    pytest.param("fsdp_tp", 4, WIDTH, marks=pytest.mark.slow),
    pytest.param("hsdp_tp", 8, WIDTH, marks=pytest.mark.slow),
]


def parts(rank: int, layout: str, ranks: int, width: int) -> dict[str, Any]:
    """What a rank holds of each gradient after a backward pass, and the truth from whole tensors."""
    model = LAYOUTS[layout](ranks, width)
    model(batch(3, width)).square().mean().backward()
    held, whole, copies = {}, {}, 0.0
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        assert not is_partial(gradient)
        part = local(gradient)
        assert not is_sharded(part)
        held[name, shard_key(parameter)] = (part.numel(), part.double().square().sum().item())
        full = gradient.full_tensor() if is_sharded(gradient) else gradient
        whole[name] = (full.numel(), full.double().square().sum().item())
        copies += (
            part.numel()
            / math.prod(
                size
                for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True)
                if placement.is_replicate()
            )
            if is_sharded(parameter)
            else part.numel()
        )
    return {"held": held, "whole": whole, "copies": copies}


@pytest.mark.parametrize(("layout", "ranks", "width"), CASES)
def test_one_part_for_each_key_makes_up_the_whole(
    layout: str, ranks: int, width: int, tmp_path: Path
) -> None:
    results = on_ranks(ranks, parts, tmp_path, layout, ranks, width)
    merged: dict[str, tuple[int, float]] = {}
    seen: dict[Any, float] = {}
    for result in results:
        for key, (n_part, squares) in result["held"].items():
            if key in seen:
                assert math.isclose(seen[key], squares, rel_tol=1e-12), f"{key} is no replica"
                continue
            seen[key] = squares
            n, s = merged.get(key[0], (0, 0.0))
            merged[key[0]] = (n + n_part, s + squares)
    assert {name: n for name, (n, _) in merged.items()} == {
        name: n for name, (n, _) in results[0]["whole"].items()
    }
    for name, (_, squares) in results[0]["whole"].items():
        assert math.isclose(merged[name][1], squares, rel_tol=1e-12)


def test_counting_a_tensors_own_replicas_would_be_wrong(tmp_path: Path) -> None:
    results = on_ranks(4, parts, tmp_path, "fsdp_tp", 4, WIDTH)
    assert sum(result["copies"] for result in results) != numel(WIDTH)
    held = {key: n for result in results for key, (n, _) in result["held"].items()}
    assert sum(held.values()) == numel(WIDTH) == 576
