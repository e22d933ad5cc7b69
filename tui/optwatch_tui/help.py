"""The help page, made of the table of keys and of the signs."""

from collections.abc import Sequence

from optwatch_tui.bindings import Key, Scope
from optwatch_tui.rows import Row
from optwatch_tui.theme import SEVERITY_GLYPHS

_SCOPES: tuple[tuple[Scope, str], ...] = (
    ("run", "on a run"),
    ("findings", "on the findings"),
    ("actions", "on the actions"),
    ("runs", "in the list of runs"),
    ("compare", "on compared runs"),
    ("tensors", "on the tensors"),
    ("tensor", "on one tensor"),
    ("ranks", "on the ranks"),
    ("app", "everywhere"),
)
_SIGNS: tuple[tuple[str, str, str], ...] = (
    (SEVERITY_GLYPHS["critical"], "critical", "critical: look at once"),
    (SEVERITY_GLYPHS["warning"], "warning", "warning: something goes wrong"),
    (SEVERITY_GLYPHS["info"], "info", "info: worth knowing, never acted on"),
    (SEVERITY_GLYPHS["watch"], "watch", "watch: an early sign, may mean nothing"),
    ("✓", "ok", "an action that was applied, or a finding that is over"),
    ("?", "warning", "an action that is proposed and waits for you"),
    ("◆", "third", "a mark of your own script's"),
    ("● ◌ ■ ✖", "text", "live, stale, ended, lost"),
)


def help_rows(width: int, keys: Sequence[Key], *, readonly: bool) -> list[Row]:
    """All keys by where they work, each once, then the signs."""
    rows: list[Row] = []
    for scopes, group in _groups(keys):
        rows += [((_place(scopes), "title"),)]
        for key in group:
            off = readonly and key.acts
            about = f"{key.help} (off: read-only)" if off else key.help
            role = "muted" if off else "key"
            rows.append(((f"  {key.shown:<7}", role), (f"{key.label:<16}", "text"), (about, "muted")))
        rows.append(())
    rows.append((("signs", "title"),))
    for glyph, role, meaning in _SIGNS:
        rows.append(((f"  {glyph:<7}", role), (meaning, "muted")))
    rows += [
        (),
        (("modes", "title"),),
        (("  observe  ", "text"), ("nobody acts but you", "muted")),
        (("  advise   ", "text"), ("the daemon proposes, you approve", "muted")),
        (("  auto     ", "text"), ("the daemon acts within its limits, and says so", "muted")),
    ]
    return rows


def _groups(keys: Sequence[Key]) -> list[tuple[tuple[Scope, ...], list[Key]]]:
    """Keys that work in the same places, in the order of `_SCOPES`."""
    groups: dict[tuple[Scope, ...], list[Key]] = {}
    for key in keys:
        groups.setdefault(key.scopes, []).append(key)
    order = [scope for scope, _ in _SCOPES]
    return sorted(groups.items(), key=lambda entry: (order.index(entry[0][0]), len(entry[0])))


def _place(scopes: tuple[Scope, ...]) -> str:
    names = dict(_SCOPES)
    if len(scopes) > 1 and set(scopes) == set(names) - {"app"}:
        return "on every screen"
    first, *others = (names[scope] for scope in scopes)
    return ", ".join([first, *others])
