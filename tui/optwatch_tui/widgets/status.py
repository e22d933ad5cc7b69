"""The two lines on top of a run: where it is and how it is reached, and how it does in one sentence."""

from optwatch_tui import describe
from optwatch_tui.describe import NamedKeys
from optwatch_tui.model import Link, Snapshot
from optwatch_tui.rows import Row, Span, clip_row, row_length
from optwatch_tui.widgets.frame import Lines

_GAP = "   "


class StatusHeader(Lines):
    """Run, link, step, rate, ranks, mode, control; then the verdict. The least needed goes first."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._snapshot: Snapshot | None = None
        self._link: Link | None = None
        self._now = 0.0
        self._badges: tuple[Span, ...] = ()
        self._keys: NamedKeys | None = None

    def show(
        self, snapshot: Snapshot | None, link: Link, now: float, badges: tuple[Span, ...], keys: NamedKeys
    ) -> None:
        """Draw another state. `badges`: words that stand at the right whatever else has to go."""
        self._snapshot, self._link, self._now = snapshot, link, now
        self._badges, self._keys = badges, keys
        self.renew()

    def lines(self, width: int, height: int) -> list[Row]:
        link = self._link
        if link is None:
            return []
        if self._snapshot is None or self._keys is None:
            return [((f" {link.state} ", "title"), (link.address, "muted")), link_sentence(link)]
        pieces = describe.status_pieces(self._snapshot, link, self._now)
        badges: Row = tuple(span for badge in self._badges for span in ((" ", "text"), badge, (" ", "text")))
        room = width - row_length(badges) - 2
        rows = fitting(pieces, room)
        line: list[Span] = [(" ", "text")]
        for at, row in enumerate(rows):
            line.extend(((_GAP, "text"), *row) if at else row)
        fill = width - row_length(tuple(line)) - row_length(badges)
        head = (
            *clip_row(tuple(line), max(1, width - row_length(badges))),
            (" " * max(0, fill), "text"),
            *badges,
        )
        if link.state == "lost":
            return [head, link_sentence(link)]
        return [head, clip_row(describe.verdict(self._snapshot, self._keys, width), width)]


def fitting(pieces: list[tuple[int, Row]], width: int) -> list[Row]:
    """The pieces that fit, in their order: those with the highest numbers go first, 0 never."""
    kept = list(pieces)
    while sum(row_length(row) for _, row in kept) + len(_GAP) * (len(kept) - 1) > width:
        worst = max(kept, key=lambda piece: piece[0])
        if worst[0] == 0:
            break
        kept.remove(worst)
    return [row for _, row in kept]


def link_sentence(link: Link) -> Row:
    """What to make of a link that is not live."""
    if link.state == "connecting":
        return ((" ◌ ", "info"), (link.reason or "looking for the daemon", "muted"))
    return ((" ✖ ", "critical"), (link.reason, "text"))
