"""The detectors' thresholds by name, and other values for a while.

A threshold is a number at the top of a detector's module, with the text below it: `PATIENCE` in
`divergence.py` is `divergence.patience`.
"""

import ast
import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from optwatch.detect.panel import DETECTORS

SHARED = ("collapse", "insides", "spell")
"""Modules that several detectors, or the causes, take thresholds from."""


@dataclass(frozen=True)
class Threshold:
    """A threshold's shipped value, a float or a whole number, and what it is."""

    value: float
    about: str


def thresholds() -> dict[str, Threshold]:
    """All that can be changed, by name. Numbers that others are computed from once are left out."""
    return {
        f"{_short(module)}.{name.lower()}": Threshold(value, about)
        for module in _modules()
        for name, value, about in _constants(module)
    }


@contextmanager
def changed(settings: Mapping[str, float]) -> Iterator[None]:
    """Other thresholds, in this process, for as long as the block runs.

    Raises:
        ValueError: there is no such threshold, or the number does not suit it.
    """
    known = thresholds()
    for name, value in settings.items():
        _check(name, value, known)
    modules = {_short(module): module for module in _modules()}
    try:
        for name, value in settings.items():
            _set(modules, name, value, known[name].value)
        yield
    finally:
        for name in settings:
            _set(modules, name, known[name].value, known[name].value)


def _check(name: str, value: float, known: Mapping[str, Threshold]) -> None:
    if name not in known:
        detector = name.partition(".")[0]
        near = [other for other in known if other.startswith(f"{detector}.")]
        there = f"its thresholds are {', '.join(near)}" if near else "see --list"
        raise ValueError(f"{name}: there is no such threshold; {there}")
    shipped = known[name].value
    if not math.isfinite(value) or value == 0 or (value < 0) != (shipped < 0):
        raise ValueError(f"{name}: has to be a {'negative' if shipped < 0 else 'positive'} number")
    if isinstance(shipped, int) and value != int(value):
        raise ValueError(f"{name}: has to be a whole number")


def _set(modules: Mapping[str, ModuleType], name: str, value: float, shipped: float) -> None:
    short, _, key = name.partition(".")
    setattr(modules[short], key.upper(), int(value) if isinstance(shipped, int) else float(value))


def _modules() -> list[ModuleType]:
    own = {detector.__module__ for detector in DETECTORS}
    shared = {f"optwatch.detect.{name}" for name in SHARED}
    return [importlib.import_module(name) for name in sorted(own | shared)]


def _short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _constants(module: ModuleType) -> Iterator[tuple[str, float, str]]:
    """Name, value and text of a module's numbers, in their order."""
    body = ast.parse(inspect.getsource(module)).body
    used = {
        node.id
        for statement in body
        if isinstance(statement, ast.Assign)
        for node in ast.walk(statement.value)
        if isinstance(node, ast.Name)
    }
    for i, statement in enumerate(body):
        if not isinstance(statement, ast.Assign):
            continue
        target = statement.targets[0]
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
        if len(names) != len(values):
            continue
        for each, value in zip(names, values, strict=True):
            if isinstance(each, ast.Name) and each.id not in used and _is_number(value):
                yield each.id, getattr(module, each.id), _text(body, i)


def _is_number(node: ast.expr) -> bool:
    try:
        return type(ast.literal_eval(node)) in (int, float)
    except ValueError:
        return False


def _text(body: list[ast.stmt], i: int) -> str:
    """The text below a statement, in one line."""
    after = body[i + 1] if i + 1 < len(body) else None
    if (
        isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    ):
        return " ".join(after.value.value.split())
    return ""
