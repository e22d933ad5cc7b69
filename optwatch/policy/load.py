"""Policies from TOML files; what is wrong in one is said with its line."""

from pathlib import Path

from optwatch.policy.rules import Rules
from optwatch.wire.toml import TomlError, find_line, parse_toml


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
        rules = parse_toml(text, Rules, source)
    except TomlError as error:
        raise PolicyError(str(error)) from None
    names = [rule.name for rule in rules.rule]
    for number, name in enumerate(names):
        if name in names[:number]:
            line = find_line(text, f"$.rule[{number}].name", "")
            raise PolicyError(f"{source}, line {line}: a second rule named {name!r}")
    return rules


def default_text() -> str:
    """The policy that optwatch ships, with its comments."""
    return Path(__file__).with_name("default.toml").read_text(encoding="utf-8")


DEFAULT = parse_rules(default_text(), "the shipped policy")
