"""An action's arguments as a form, derived from the contract: a new action has one by itself. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from optwatch.wire.actions import ACTIONS, action_args, parse_action


@dataclass(frozen=True)
class Field:
    """One argument. `options`: what it may be, where that is a list; `hint`: what may be typed otherwise."""

    name: str
    options: tuple[str, ...] = ()
    hint: str = ""


def fields(action: str) -> tuple[Field, ...]:
    """The arguments that an action takes, in the order of its definition."""
    found = []
    for field in msgspec.structs.fields(ACTIONS[action]):
        kinds = _kinds(inspect.type_info(field.type))
        options: list[str] = []
        words: list[str] = []
        for kind in kinds:
            if isinstance(kind, inspect.BoolType):
                options += ["no", "yes"]
            elif isinstance(kind, inspect.LiteralType):
                options += [str(value) for value in kind.values]
            elif isinstance(kind, inspect.IntType | inspect.FloatType):
                words.append(_number_hint(kind))
            elif isinstance(kind, inspect.StrType):
                words.append("text")
        if words:
            found.append(Field(field.name, hint=" or ".join([*words, *options])))
        else:
            found.append(Field(field.name, tuple(options)))
    return tuple(found)


def texts(action: str, args: Mapping[str, Any]) -> dict[str, str]:
    """What the form says for given arguments; an empty text is an argument that is not given."""
    said = {}
    for field in msgspec.structs.fields(ACTIONS[action]):
        value = args.get(field.name, field.default)
        if isinstance(value, bool):
            said[field.name] = "yes" if value else "no"
        else:
            said[field.name] = "" if value is None or value is msgspec.NODEFAULT else _text(value)
    return said


def read(action: str, said: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that a form asks for, without those at their default.

    Raises:
        ValueError: one sentence that names the argument that is wrong.
    """
    given = {name: _value(text.strip()) for name, text in said.items() if text.strip()}
    for field in fields(action):
        if field.options == ("no", "yes") and field.name in given:
            given[field.name] = given[field.name] == "yes"
    return action_args(parse_action(action, given))


def _kinds(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _kinds(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [each for one in kind.types for each in _kinds(one)]
    return [kind]


def _number_hint(kind: inspect.IntType | inspect.FloatType) -> str:
    words = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    bounds = [
        f"{sign} {bound:,}"
        for sign, bound in ((">", kind.gt), ("≥", kind.ge), ("<", kind.lt), ("≤", kind.le))
        if bound is not None
    ]
    return f"{words} {', '.join(bounds)}".rstrip()


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(text: str) -> Any:
    """A whole number, a number or a word; the contract says afterwards whether it may be that."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
