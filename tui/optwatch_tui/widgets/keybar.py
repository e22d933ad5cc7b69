"""The footer: the keys that matter most here, as many as fit."""

from optwatch_tui.bindings import Key, footer_keys
from optwatch_tui.rows import Row, Span, clip_row, row_length
from optwatch_tui.widgets.frame import Lines


class KeyBar(Lines):
    """One line of keys from the table of bindings."""

    def __init__(self, keys: tuple[Key, ...], *, readonly: bool, id: str = "keybar") -> None:
        super().__init__(id=id)
        self._keys = [key for key in footer_keys(keys) if not (readonly and key.acts)]
        off = [key.shown for key in keys if readonly and key.acts and key.rank]
        self._off: Row = ((f" {' '.join(off)}", "muted"), (" off: read-only ", "warning")) if off else ()
        self._notice: Row | None = None
        self._under: Row = ()

    def say(self, notice: Row | None) -> None:
        """Show a sentence instead of the keys, or the keys again."""
        self._notice = notice
        self.renew()

    def under(self, row: Row) -> None:
        """What stands at the cursor, shown instead of the keys; () for nothing."""
        if row != self._under:
            self._under = row
            self.renew()

    def lines(self, width: int, height: int) -> list[Row]:
        if self._notice is not None:
            return [clip_row(self._notice, width)]
        if self._under:
            return [clip_row(self._under, width)]
        # Help and quit always have their place; the others come by rank as long as there is room.
        fixed = [key for key in self._keys if key.name in ("help", "quit")]
        kept = list(fixed)
        off = self._off if row_length((*self._off, *_bar(fixed))) <= width else ()
        for key in self._keys:
            if key not in fixed and row_length((*off, *_bar([*kept, key]))) <= width:
                kept.append(key)
        return [(*off, *_bar([key for key in self._keys if key in kept]))]


def _bar(keys: list[Key]) -> Row:
    spans: list[Span] = []
    for key in keys:
        spans += [(f" {key.shown}", "key"), (f" {key.label} ", "muted")]
    return tuple(spans)
