"""Functions of torch that are wrapped while an agent is attached, once for the process."""

import threading
from collections.abc import Callable
from typing import Any

_lock = threading.Lock()


class Patch:
    """One attribute of a module or class that is replaced by a wrapper of it.

    `make` gets the original and returns the wrapper, which has to be as good as the original while
    `users` is 0: where somebody else has wrapped it in turn, it cannot be taken off.
    """

    def __init__(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]):
        self.users = 0
        self._owner = owner
        self._name = name
        self._make = make
        self._original: Callable[..., Any] | None = None
        self._wrapper: Callable[..., Any] | None = None

    def install(self) -> None:
        """Wrap it for one more user. Nothing happens where this version of torch has no such function."""
        with _lock:
            self.users += 1
            if self.users == 1 and self._wrapper is None and hasattr(self._owner, self._name):
                self._original = getattr(self._owner, self._name)
                self._wrapper = self._make(self._original)
                setattr(self._owner, self._name, self._wrapper)

    def remove(self) -> None:
        """Undo one `install`; the last takes the wrapper off if it is still on top."""
        with _lock:
            self.users -= 1
            if self.users == 0 and getattr(self._owner, self._name, None) is self._wrapper:
                setattr(self._owner, self._name, self._original)
                self._wrapper = self._original = None
