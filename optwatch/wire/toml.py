"""Settings from TOML texts: checked against a struct, and what is wrong is said with its line."""

import re
import tomllib
from typing import TypeVar

import msgspec

Settings = TypeVar("Settings", bound=msgspec.Struct)


class TomlError(ValueError):
    """One sentence that names the file, the line and what is wrong."""


def parse_toml(text: str, into: type[Settings], source: str) -> Settings:
    """A text as a struct; `source` is its name in errors.

    Raises:
        TomlError: it is no TOML, or says what the struct does not take.
    """
    try:
        return msgspec.convert(tomllib.loads(text), into)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        path = path.rstrip("`")
        line, where = find_line(text, path, message), path.removeprefix("$").lstrip(".")
        raise TomlError(f"{source}, line {line}: {where and where + ': '}{message}") from None


def find_line(text: str, path: str, message: str) -> int:
    """The line of a TOML text that an error's path speaks of, such as `$.rule[2].do[0].factor`.

    The narrowest that can be told: the key's line in its table, else the table's header, else 1.
    """
    lines = text.splitlines()
    found = re.match(r"\$\.?(\w+)?(?:\[(\d+)\])?(?:\.(\w+))?", path)
    table, number, key = found.groups() if found else (None, None, None)
    # An unknown or missing field is named by the message, the path ends at its table.
    if named := re.search(r"field `(\w+)`", message):
        table, key = (table, key or named[1]) if table else (named[1], None)
    start, seen = 0, -1
    if table:
        for index, line in enumerate(lines):
            if re.match(rf"\s*(\[\[?\s*{table}\s*\]\]?|{table}\s*=)", line):
                seen += 1
                start = index
                if seen == int(number or 0):
                    break
    if key:
        for index in range(start + 1, len(lines)):
            if re.match(r"\s*\[", lines[index]):
                break
            if re.match(rf"\s*{key}\b", lines[index]):
                return index + 1
    return start + 1
