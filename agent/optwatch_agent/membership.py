"""Which rank of which run this process is, found out without waiting for anybody.

The job's ranks agree on one run id, and later on commands, through the job's own store. The process group
may come after `attach`; the first step shows that there is none. Until then the agent does not introduce
itself to the daemon, and what it measures waits in its queue.
"""

import dataclasses
import time
from typing import TYPE_CHECKING

from optwatch_agent import identity
from optwatch_agent.arbiter import Arbiter
from optwatch_agent.identity import Identity
from optwatch_agent.jobstore import NoStore, connect, default_store
from optwatch_agent.vote import Store

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store as JobStore

_PATIENCE = 2.0
"""Seconds that a process which no launcher calls a rank of several waits for its first step."""


class Membership:
    """The place of one attachment. All but `close` is called by the link's thread, `arbiter` read by all."""

    def __init__(self, who: Identity, store: "JobStore | None") -> None:
        self.who = who
        """As far as it is known; final once `settled`."""
        self.alone = who.world_size == 1
        """Whether no other process takes part in the training."""
        self.settled = False
        self.arbiter: Arbiter | None = None
        self.obstacle = ""
        """Why the ranks have no way to agree, "" where they have or need none."""
        self._store = store
        self._began = time.monotonic()

    @property
    def state(self) -> str:
        """ "armed", or why commands cannot be taken."""
        if self.obstacle:
            return self.obstacle
        if self.alone:
            return "armed"
        if self.arbiter is None or not (self.arbiter.ready or self.arbiter.lost):
            return "observe only: joining the job's store"
        return f"control lost: {self.arbiter.lost}" if self.arbiter.lost else "armed"

    def look(self, stepped: bool) -> None:
        """See what has become known. `stepped`: whether a step has begun."""
        if self.arbiter is not None or self.obstacle:
            if self.arbiter is not None and self.arbiter.lost:
                self.settled = True
            return
        try:
            store = default_store()
            if store is None and self._store is None:
                self._without_group(stepped)
                return
            rank, world_size = identity.place()
            if self.settled and world_size > 1:
                self.obstacle = "observe only: the process group came after the first step"
            elif world_size == 1:
                self.settled = True
            else:
                self._join(store if self._store is None else self._store, rank, world_size)
        except NoStore as error:
            self._take_place(*identity.place())
            self.obstacle = f"observe only: {error}"
            self.settled = True

    def close(self, timeout: float) -> None:
        """End the thread that talks to the store; after `timeout` seconds it is left behind."""
        if self.arbiter is not None:
            self.arbiter.close(timeout)

    def _without_group(self, stepped: bool) -> None:
        if stepped and not self.alone:
            self.obstacle = (
                f"observe only: {self.who.world_size} ranks have no process group to agree through"
            )
        patient = self.alone and time.monotonic() - self._began > _PATIENCE
        self.settled = self.settled or stepped or patient

    def _join(self, store: "JobStore | None", rank: int, world_size: int) -> None:
        assert store is not None
        self._take_place(rank, world_size)
        arbiter = Arbiter(lambda: connect(store))
        arbiter.call(self._agree_on_run)
        self.arbiter = arbiter

    def _take_place(self, rank: int, world_size: int) -> None:
        self.who = dataclasses.replace(self.who, rank=rank, world_size=world_size)
        self.alone = world_size == 1

    def _agree_on_run(self, store: Store) -> None:
        """All take the id of whoever comes first. In the arbiter's thread."""
        key = f"run/{self.who.job}/{self.who.name}/{self.who.ordinal}"
        self.who = dataclasses.replace(self.who, run=store.compare_set(key, "", self.who.run).decode())
        self.settled = True
