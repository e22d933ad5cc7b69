"""Whether the loss of a training has to fall while all is well."""

import sys

_BY_REWARD = (
    "gymnasium",
    "gym",
    "pettingzoo",
    "dm_env",
    "envpool",
    "brax",
    "isaacgym",
    "isaaclab",
    "pyspiel",
    "torchrl.envs",
    "trl.trainer.grpo_trainer",
    "trl.trainer.ppo_trainer",
    "trl.trainer.rloo_trainer",
)
"""Modules of environments, and of trainers that learn from rewards."""


def why_loss_may_rise() -> str:
    """Why the loss need not fall, "" where it has to.

    In reinforcement learning the data, and with them the targets, are those of the policy so far: the more
    it learns to earn, the larger the loss of the value function may become.
    """
    module = next((name for name in _BY_REWARD if name in sys.modules), "")
    return f"reinforcement learning with {module}" if module else ""
