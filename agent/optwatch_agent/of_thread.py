"""What is kept apart for each thread that trains: several may do so in one process, as in a search with
`n_jobs=2`, and none is to have the losses of another."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OfThread(Generic[T]):
    """One of something for each training thread: one that attaches, or takes a step. Others, such as those in
    which it runs its backward passes, share that of the training thread that was seen last."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._own = threading.local()
        self.latest = make()
        """That of the thread that was seen last."""
        self._is_taken = False

    def here(self) -> T:
        """That of this thread."""
        own: T = getattr(self._own, "value", self.latest)
        return own

    def claim(self) -> T:
        """The same; from now on this is a training thread."""
        try:
            own: T = self._own.value
        except AttributeError:
            own = self._own.value = self._make() if self._is_taken else self.latest
            self._is_taken = True
        self.latest = own
        return own
