"""Duties: which ranks send everything. Of replicas one does, and the next takes over where it is gone."""

from collections.abc import Sequence

from optwatch.daemon.assembly import Assembly


class Duties:
    """Of one run. What a rank sends is `Assign`ed to it; until then it sends everything."""

    def __init__(self) -> None:
        self._senders: set[int] = set()
        self._change: tuple[set[int], set[int]] | None = None
        """Senders that have gone, and those that took over, a look ago."""
        self._news = ""

    def look(self, assemblies: Sequence[Assembly]) -> tuple[set[int], set[int]]:
        """The ranks that are to send everything, and those of which all is sent by others.

        A rank whose tensors are not known yet is neither.
        """
        known = set.intersection(*(assembly.known for assembly in assemblies)) if assemblies else set()
        senders = {rank for assembly in assemblies for rank in assembly.senders()}
        if self._change is not None and self._change[1] <= known:  # not the end of the job, rank by rank
            self._news = _told(*self._change)
        gone, new = self._senders - known, senders - self._senders
        self._change = (gone, new) if gone and new else None
        self._senders = senders
        return senders, known - senders

    def news(self) -> str:
        """What is to be said of ranks that took over from others, once; "" where none did."""
        news, self._news = self._news, ""
        return news


def _told(gone: set[int], new: set[int]) -> str:
    return (
        f"{_ranks(gone)} out of touch, {_ranks(new)} to send the statistics of tensors instead: "
        "those of the steps between may be missing"
    )


def _ranks(ranks: set[int]) -> str:
    some = ", ".join(map(str, sorted(ranks)[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank {some} is" if len(ranks) == 1 else f"ranks {some} are"
