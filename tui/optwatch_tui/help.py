"""The help page, made of the table of keys and of the signs."""

from optwatch_tui.bindings import KEYS, Scope
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


def help_rows(width: int, *, readonly: bool) -> list[Row]:
    """All keys by where they work, then the signs."""
    rows: list[Row] = []
    acting = [key for key in KEYS if key.acts]  # the same ones on several screens: told once
    sections = [(title, [k for k in KEYS if scope in k.scopes and not k.acts]) for scope, title in _SCOPES]
    for title, keys in (("acting: on a run, its findings and its actions", acting), *sections):
        rows += [((title, "title"),)]
        for key in keys:
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
