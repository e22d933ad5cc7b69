"""Pace: how often the agents of a job speak, so that a large job does not ask too much of a daemon."""

from dataclasses import dataclass

TURN = 0.2
"""Seconds between two turns of an agent, in each of which it sends what it has."""
LONGEST = 1.0
MESSAGES = 1_250
"""A second, of all agents of a job together, up to the size at which they are at the longest turn."""
QUICK_TURN = 0.005
QUICK_MESSAGES = 3_000
"""The same after something unusual. A daemon that gets more than it takes hears of nothing sooner."""
HASTE, CALM = 0.25, 1.0
"""Seconds for which an agent is quick after something unusual, and in which it is so once, at least."""


@dataclass(frozen=True)
class Pace:
    """That of each agent in a job of so many ranks: the more there are, the more steps it sends at a time."""

    world_size: int

    @property
    def turn(self) -> float:
        """Seconds between two turns."""
        return min(max(TURN, self.world_size / MESSAGES), LONGEST)

    @property
    def quick_turn(self) -> float:
        """The same after something unusual."""
        return min(max(QUICK_TURN, self.world_size / QUICK_MESSAGES), self.turn)

    @property
    def haste(self) -> float:
        """Seconds for which it is quick: one more turn at least."""
        return max(HASTE, self.quick_turn)

    @property
    def calm(self) -> float:
        """Seconds in which it is so once: the daemon is to have caught up by then."""
        return max(CALM, 8 * self.quick_turn)
