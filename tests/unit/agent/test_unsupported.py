"""What cannot be watched rightly is refused by name, and says why."""

from typing import Any

import pytest
import torch
from torch import nn

from optwatch_agent.attach import innermost
from optwatch_agent.unsupported import unsupported_model

SGD = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)


def wrapper(module: str, name: str) -> Any:
    """An object of a class by that name around an optimizer, as the library has it."""
    return type(name, (), {"__module__": module, "optimizer": SGD, "optim": SGD})()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("deepspeed.runtime.zero.stage_1_and_2", "DeepSpeedZeroOptimizer"),
        ("deepspeed.runtime.zero.stage3", "DeepSpeedZeroOptimizer_Stage3"),
        ("deepspeed.runtime.engine", "DeepSpeedEngine"),
        ("megatron.core.optimizer.distrib_optimizer", "DistributedOptimizer"),
        ("torchft.optim", "OptimizerWrapper"),
    ],
)
def test_a_wrapper_without_an_adapter_is_refused_by_its_name(module: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"{module}.{name}"):
        innermost(wrapper(module, name))
    outer = type("Accelerated", (), {"optimizer": wrapper(module, name)})()
    with pytest.raises(TypeError, match="no adapter"):
        innermost(outer)


def test_other_wrappers_are_taken_off() -> None:
    assert innermost(wrapper("accelerate.optimizer", "AcceleratedOptimizer")) is SGD


def test_fsdp1_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter._is_flat_param = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="fully_shard"):
        innermost(torch.optim.SGD([parameter], lr=0.1))
    module = "torch.distributed.fsdp.fully_sharded_data_parallel"
    kind = type("FullyShardedDataParallel", (nn.Module,), {"__module__": module})
    assert "fully_shard" in unsupported_model(nn.Sequential(kind()))
    assert not unsupported_model(nn.Linear(1, 1))
