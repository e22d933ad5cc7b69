"""Policies from TOML files; what is wrong in one is said with its line."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import msgspec

from optwatch.policy.rules import Rules


class PolicyError(ValueError):
    """A policy that cannot be used: one sentence that names the file, the line and what is wrong."""


def load_rules(path: Path) -> Rules:
    """Read and check a policy file.

    Raises:
        PolicyError: it cannot be read, is no TOML, or says what no policy may say.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"cannot read the policy {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PolicyError(f"the policy {path} is not a text file in UTF-8") from None
    return parse_rules(text, str(path))


def parse_rules(text: str, source: str) -> Rules:
    """Check the text of a policy; `source` is its name in errors.

    Raises:
        PolicyError: it is no TOML, or says what no policy may say.
    """
    try:
        rules = msgspec.convert(tomllib.loads(text), Rules)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        path = path.rstrip("`")
        line, where = find_line(text, path, message), path.removeprefix("$").lstrip(".")
        raise PolicyError(f"{source}, line {line}: {where and where + ': '}{message}") from None
    names = [rule.name for rule in rules.rule]
    for number, name in enumerate(names):
        if name in names[:number]:
            line = find_line(text, f"$.rule[{number}].name", "")
            raise PolicyError(f"{source}, line {line}: a second rule named {name!r}")
    return rules


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


def default_text() -> str:
    """The policy that optwatch ships, with its comments."""
    return resources.files("optwatch.policy").joinpath("default.toml").read_text(encoding="utf-8")


DEFAULT = parse_rules(default_text(), "the shipped policy")
