"""Pace: how often the agents of a job speak, so that a large job does not ask too much of a daemon."""

TURN = 0.1
"""Seconds between two turns of an agent in which it sends what it has and takes what has come."""
LONGEST = 0.5
MESSAGES = 2_500
"""A second, of all agents of a job together, up to the size at which they are at the longest turn."""


def turn_time(world_size: int) -> float:
    """Seconds between two turns of each of so many agents: from 250 on they take more steps at a time."""
    return min(max(TURN, world_size / MESSAGES), LONGEST)
