"""Peers: the ranks as commands see them, and what stands in the way of commanding them."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from optwatch.daemon.sessions import Rank

MAX_SKEW = 1
"""Steps that ranks may be apart for a vote to make sense."""
_LEAST = 1e-6
"""Seconds that a step takes at least."""


class Peer(msgspec.Struct, frozen=True):
    """What the book needs to know of a rank at the time it sends."""

    rank: int
    session: str
    fresh: bool
    steps: tuple[int, ...]
    """The global_step of each optimizer, `age` seconds ago."""
    age: float
    digests: tuple[str, ...]
    control: str
    incarnation: int = 0


def peers_of(ranks: Iterable[Rank], now: float) -> list[Peer]:
    """The ranks in their order, as they are known at the monotonic time `now`."""
    return [
        Peer(
            rank=rank.rank,
            session=rank.session.hello.session,
            fresh=rank.session.link(now) == "up",
            steps=rank.session.steps,
            age=max(now - rank.session.stepped, 0.0),
            digests=tuple([optimizer.digest for optimizer in rank.session.hello.optimizers]),
            control=rank.session.control,
            incarnation=rank.session.hello.incarnation,
        )
        for rank in sorted(ranks, key=lambda rank: rank.rank)
    ]


def pace(step_times: Sequence[float], optimizer: int) -> float:
    """Seconds per step of an optimizer; of one that is not known, the first one's."""
    own = step_times[optimizer] if optimizer < len(step_times) else step_times[0]
    return max(own, _LEAST)


def obstacle(peers: Sequence[Peer], world_size: int, step_times: Sequence[float]) -> str:
    """Why nothing can be commanded right now, "" where it can. `step_times`: as each optimizer steps."""
    newest = max((peer.incarnation for peer in peers), default=0)
    fresh = [peer for peer in peers if peer.fresh and peer.incarnation == newest]
    if len(fresh) < world_size:
        return f"{len(fresh)} of {world_size} ranks are connected"
    if unarmed := next((peer for peer in fresh if peer.control != "armed"), None):
        return f"rank {unarmed.rank}: {unarmed.control}" if world_size > 1 else unarmed.control
    if world_size > 1:
        if len({peer.digests for peer in fresh}) > 1:
            return "the optimizers of the ranks differ"
        if not all(peer.steps for peer in fresh):
            return "not all ranks have reported a step"
        # What is known of a rank is `age` seconds old, so that many steps of difference mean nothing.
        age = max(peer.age for peer in fresh)
        for optimizer, column in enumerate(zip(*(peer.steps for peer in fresh), strict=False)):
            if max(column) - min(column) > MAX_SKEW + math.ceil(age / pace(step_times, optimizer)):
                return "the ranks are more than one step apart"
    return ""
