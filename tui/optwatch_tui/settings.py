"""The user's own settings: keys, theme and smoothing, from tui.toml. Checked when it is read."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from textual.keys import KEY_NAME_REPLACEMENTS, Keys

from optwatch_tui.bindings import KEYS, Key
from optwatch_tui.look import Smoothing
from optwatch_tui.theme import PALETTES

FILE = "tui.toml"
_THEMES = {name.removeprefix("optwatch-"): name for name in PALETTES}
_MODIFIERS = ("ctrl", "alt", "shift", "super", "meta")
_NAMED = {key.value for key in Keys if "<" not in key.value}


class SettingsError(ValueError):
    """What is wrong with the file, where, in a sentence."""


@dataclass(frozen=True)
class Settings:
    """`keys`: the key that the user gave an action, by its name. `theme`: None where the terminal says."""

    keys: dict[str, str] = field(default_factory=dict)
    theme: str | None = None
    smoothing: Smoothing = "off"

    def in_force(self, keys: Iterable[Key] = KEYS) -> tuple[Key, ...]:
        """Rows of the table of keys with the user's instead of the usual ones."""
        return tuple(
            replace(key, key=canonical(given), shown=given) if (given := self.keys.get(key.name)) else key
            for key in keys
        )

    def shown(self, name: str) -> str:
        """The key of an action as it is written on the screen."""
        return self.keys.get(name) or next(key.shown for key in KEYS if key.name == name)


DEFAULTS = Settings()


def load(path: Path) -> Settings:
    """Read a file; the usual settings where there is none.

    Raises:
        SettingsError: it cannot be read, or says something that cannot be.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return DEFAULTS
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    import tomllib  # with its patterns a few milliseconds of the start, for those who have a file

    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    file = _File(path, text)
    for name in given:
        if name not in ("keys", "theme", "smoothing"):
            raise file.wrong(name, f"there is no setting {name!r}: there are keys, theme and smoothing")
    theme = _one_of(file, given, "theme", tuple(_THEMES))
    smoothing = _one_of(file, given, "smoothing", get_args(Smoothing))
    return Settings(
        keys=_keys(file, given.get("keys", {})),
        theme=None if theme is None else _THEMES[theme],
        smoothing=smoothing or "off",  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class _File:
    path: Path
    text: str

    def wrong(self, name: str, sentence: str) -> SettingsError:
        """An error, with the line that sets `name`."""
        for number, line in enumerate(self.text.splitlines(), start=1):
            if re.match(rf"\s*\[?\s*[\"']?{re.escape(name)}[\"']?\s*(=|\])", line):
                return SettingsError(f"{self.path}, line {number}: {sentence}")
        return SettingsError(f"{self.path}: {sentence}")


def _one_of(file: _File, given: dict[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value not in choices:
        raise file.wrong(name, f"{name} has to be one of {', '.join(choices)}, not {value!r}")
    return value


def _keys(file: _File, given: object) -> dict[str, str]:
    if not isinstance(given, dict):
        raise file.wrong("keys", "keys has to be a table: [keys] with lines such as pause = 'p'")
    names = sorted({key.name for key in KEYS})
    for name, value in given.items():
        if name not in names:
            from difflib import get_close_matches

            near = get_close_matches(name, names, n=1)
            hint = f", did you mean {near[0]}?" if near else f": there are {', '.join(names)}"
            raise file.wrong(name, f"there is no action {name!r}{hint}")
        if not isinstance(value, str) or not _is_key(value):
            raise file.wrong(
                name, f"{value!r} is no key for {name}: a character, or a name such as f5 or ctrl+r"
            )
    settings = Settings(keys=dict(given))
    _refuse_clashes(file, settings)
    return settings.keys


def _refuse_clashes(file: _File, settings: Settings) -> None:
    """One key does one thing on each screen; what works everywhere may share its key with nothing."""
    taken: dict[tuple[str, str], str] = {}
    scopes = sorted({scope for key in KEYS for scope in key.scopes})
    for key in settings.in_force():
        for scope in scopes if "app" in key.scopes else key.scopes:
            for each in key.key.split(","):
                other = taken.setdefault((scope, each), key.name)
                if other != key.name:
                    named = key.name if key.name in settings.keys else other
                    raise file.wrong(
                        named, f"{key.shown!r} would be both {other} and {key.name}: give one another key"
                    )


def canonical(key: str) -> str:
    """A key as Textual calls it: `?` is question_mark."""
    if len(key) > 1:
        return key
    name = key if key.isalnum() else unicodedata.name(key, key).lower().replace("-", "_").replace(" ", "_")
    return KEY_NAME_REPLACEMENTS.get(name, name)


def _is_key(key: str) -> bool:
    if len(key) == 1:
        return key.isprintable() and key != " " and key != ","
    *modifiers, last = key.split("+")
    if not all(modifier in _MODIFIERS for modifier in modifiers):
        return False
    return key in _NAMED or last in _NAMED or (bool(modifiers) and len(last) == 1 and last.isalnum())
