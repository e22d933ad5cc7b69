"""What is kept apart for trainings in several threads of one process, as in a search with `n_jobs=2`: none is
to have the losses of another.

Where all attachments were made in one thread there is one, whichever threads the passes and steps are in.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OfThread(Generic[T]):
    """One of something for each thread that has attached."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.latest = make()
        """That of the last one to attach, and of threads that have not."""
        self._make = make
        self._own: dict[int, T] = {}
        self._attachments: Counter[int] = Counter()
        self._lock = threading.Lock()

    def here(self) -> T:
        """That of this thread."""
        if len(self._own) < 2:
            return self.latest
        return self._own.get(threading.get_ident(), self.latest)

    def join(self) -> int:
        """An attachment is made in this thread; its number, for `leave`."""
        thread = threading.get_ident()
        with self._lock:
            self._attachments[thread] += 1
            if thread not in self._own:
                self.latest = self._make() if self._own else self.latest
                self._own[thread] = self.latest
        return thread

    def leave(self, thread: int) -> None:
        """It is over."""
        with self._lock:
            self._attachments[thread] -= 1
            if self._attachments[thread] <= 0:
                del self._attachments[thread]
                self._own.pop(thread, None)
                if self._own:
                    self.latest = [*self._own.values()][-1]
