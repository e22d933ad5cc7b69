"""Targets: whom to tell what, from notify.toml in the configuration directory."""

import os
import re
from pathlib import Path
from typing import Annotated

import msgspec

from optwatch.export.notices import About
from optwatch.wire.findings import Kind, Severity
from optwatch.wire.toml import TomlError, find_line, parse_toml

Minutes = Annotated[float, msgspec.Meta(ge=0, le=10_000_000)]
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody to tell. The URL is Apprise's, such as mailtos://me:password@example.org; it is a secret."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """What logs call it, instead of its URL."""
    url: str = ""
    url_env: str = ""
    """The environment variable that holds the URL, where it shall not stand in the file."""
    about: tuple[About, ...] = ("finding", "action", "lost")
    severity: tuple[Severity, ...] = ("warning", "critical")
    """Of findings, and of those whose end is told."""
    kind: tuple[Kind, ...] = ()
    """The same; empty: all."""
    repeat_minutes: Minutes = 60
    """A finding of a kind that the run had already is told again after so long, or when it is more severe."""
    digest_minutes: Minutes = 0
    """Gather what is not critical for so long, and tell it in one message."""
    quiet: str = ""
    """Hours of the day, local time, such as "22:00-07:00": what comes in them is told after them."""
    quiet_except: tuple[Severity, ...] = ()
    """Severities that are sent in these hours all the same."""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.url_env):
            raise ValueError("a target has either a url or the url_env that holds it")
        if self.quiet and (not (hours := _HOURS.fullmatch(self.quiet)) or hours[0][:5] == hours[0][6:]):
            raise ValueError("field `quiet` is HH:MM-HH:MM, such as 22:00-07:00")

    def address(self) -> str:
        """The URL. Never to be shown.

        Raises:
            LookupError: the environment has none.
        """
        if self.url:
            return self.url
        if not (url := os.environ.get(self.url_env)):
            raise LookupError(f"${self.url_env} is not set")
        return url

    def is_quiet(self, minute: int) -> bool:
        """Whether its quiet hours are on; `minute` of the day, local time."""
        if not self.quiet:
            return False
        first, last = (int(at[:2]) * 60 + int(at[3:]) for at in self.quiet.split("-"))
        return first <= minute < last if first < last else minute >= first or minute < last


class Targets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    target: tuple[Target, ...] = ()


def read_targets(path: Path) -> tuple[Target, ...]:
    """All targets of a file; none where there is no file.

    Raises:
        TomlError: it cannot be read, others can read its secrets, or it says what cannot be.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TomlError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TomlError(f"{path} is not a text file in UTF-8") from None
    targets = parse_targets(text, str(path))
    if mode & 0o077 and any(target.url for target in targets):
        raise TomlError(f"others can read the secrets in {path}: run chmod 600 {path}")
    return targets


def parse_targets(text: str, source: str) -> tuple[Target, ...]:
    """Check the text of a file; `source` is its name in errors.

    Raises:
        TomlError: it is no TOML, or says what cannot be.
    """
    targets = parse_toml(text, Targets, source).target
    names = [target.name for target in targets]
    for number, name in enumerate(names):
        if name in names[:number]:
            line = find_line(text, f"$.target[{number}].name", "")
            raise TomlError(f"{source}, line {line}: a second target named {name!r}")
    return targets
