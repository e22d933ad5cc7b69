"""The vote on a command: all ranks apply it before the same step, or none does.

The verdict of a vote is a write-once register in the job's own store. Each rank puts the command in its
list of pending ones, then adds itself to the count of those in favour; whoever completes the count
writes COMMIT. A rank that is against it, or that comes to the step of the command without knowing the
verdict, writes ABORT; the store keeps whichever came first, so all ranks read one answer. COMMIT needs
every rank, and each has the command pending and its step ahead of it, so none can have passed by.
Nobody waits for anybody: a lost message or a dead rank ends in ABORT.
"""

import enum
from typing import Protocol


class Verdict(enum.Enum):
    """What became of a vote. It never changes once it is there."""

    COMMIT = "COMMIT"
    ABORT = "ABORT"


class Store(Protocol):
    """The part of a c10d store that a vote needs. Any call may raise when the store is gone."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which begins at 0; what it is now."""
        ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Set a key that holds `expected`; "" also stands for a key that is not there. Its value now."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there, without waiting for them."""
        ...

    def get(self, key: str, /) -> bytes:
        """The value of a key that is there."""
        ...


def favour(store: Store, vote: str, n: int) -> Verdict | None:
    """Vote yes, once per rank; the verdict where it is known already.

    The command has to be pending on this rank before this is called.
    """
    if store.add(f"y/{vote}", 1) == n:
        return _write(store, vote, Verdict.COMMIT)
    return None


def oppose(store: Store, vote: str) -> Verdict:
    """Vote no, or ask for the verdict at the step itself: ABORT unless all ranks were in favour."""
    return _write(store, vote, Verdict.ABORT)


def peek(store: Store, vote: str) -> Verdict | None:
    """The verdict if it is there. It never waits."""
    key = f"v/{vote}"
    return Verdict(store.get(key).decode()) if store.check([key]) else None


def _write(store: Store, vote: str, verdict: Verdict) -> Verdict:
    return Verdict(store.compare_set(f"v/{vote}", "", verdict.value).decode())
