"""Guests: whose keys a daemon lets in beside its own user's, and as what.

They stand in a text file of the daemon's user, a line each: role, public key, name. An empty line and one
that begins with "# " say nothing.
"""

import fcntl
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from optwatch.wire.keys import KeyFileError
from optwatch.wire.places import config_dir, write_private

Role = Literal["agent", "viewer", "operator"]
"""agent: sends what a training measures, and is commanded; viewer: asks; operator: all that its user may."""

ROLES: tuple[Role, ...] = get_args(Role)

_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[\w.@+-]{1,64}")


class Guest(msgspec.Struct, frozen=True):
    """Somebody whom the daemon lets in. `public` is a CURVE key, Z85 text of 40 characters."""

    role: Role
    public: str
    name: str


def guests_file() -> Path:
    return config_dir() / "keys" / "guests"


def read_guests() -> tuple[Guest, ...]:
    """The guests of this user's daemons, none where there is no file.

    Raises:
        KeyFileError: a line is wrong; or others may write the file.
        OSError: it cannot be read.
    """
    path = guests_file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not a text file in UTF-8") from None
    if path.stat().st_mode & 0o022:
        raise KeyFileError(f"{path} can be written by others: run chmod 600 {path}")
    return parse_guests(text, str(path))


def parse_guests(text: str, source: str) -> tuple[Guest, ...]:
    """Check the text of a guests file; `source` is its name in errors.

    Raises:
        KeyFileError: a sentence that names the line and what is wrong with it.
    """
    found: list[Guest] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("# "):
            continue
        try:
            found.append(check_guest(*_three(line.split()), found))
        except ValueError as error:
            raise KeyFileError(f"{source}, line {number}: {error}") from None
    return tuple(found)


def check_guest(role: str, public: str, name: str, others: Sequence[Guest]) -> Guest:
    """A guest beside others.

    Raises:
        ValueError: one sentence about what is wrong.
    """
    known = next((each for each in ROLES if each == role), None)
    if known is None:
        raise ValueError(f"{role!r} is no role: one is {', '.join(ROLES)}")
    if not _KEY.fullmatch(public):
        raise ValueError(f"{public!r} is no public key: one has 40 characters, and `optwatch keys` shows it")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: one has up to 64 letters, digits and . @ + - _")
    for other in others:
        if other.public == public:
            raise ValueError(f"this key is there already, as {other.name}")
        if other.name == name:
            raise ValueError(f"there is a key of {name} already")
    return Guest(known, public, name)


def add_guest(role: str, public: str, name: str) -> Guest:
    """Let somebody in.

    Raises:
        ValueError: one sentence about what is wrong; `KeyFileError` where it is the file.
        OSError: the file cannot be read or written.
    """

    def add(there: tuple[Guest, ...]) -> tuple[Guest, ...]:
        return (*there, check_guest(role, public, name, there))

    return _change(add)[-1]


def remove_guest(name: str) -> None:
    """Let somebody in no more.

    Raises:
        ValueError: there is nobody of that name; `KeyFileError` where it is the file.
        OSError: the file cannot be read or written.
    """

    def remove(there: tuple[Guest, ...]) -> tuple[Guest, ...]:
        left = tuple(guest for guest in there if guest.name != name)
        if len(left) == len(there):
            names = ", ".join(guest.name for guest in there) or "nobody"
            raise ValueError(f"there is no key of {name!r}: there is {names}")
        return left

    _change(remove)


def _change(how: Callable[[tuple[Guest, ...]], tuple[Guest, ...]]) -> tuple[Guest, ...]:
    path = guests_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path.parent / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guests = how(read_guests())
        lines = ["# role  public key  name"]
        lines += [f"{guest.role} {guest.public} {guest.name}" for guest in guests]
        write_private(path, "".join(f"{line}\n" for line in lines).encode())
    return guests


def _three(words: list[str]) -> tuple[str, str, str]:
    if len(words) != 3:
        raise ValueError("a line is: role, public key, name")
    return words[0], words[1], words[2]
