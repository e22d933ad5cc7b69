"""The reference in `examples/reference`, made from the code: `make reference`, or

python -m tests.reference [--check]
"""

import argparse
import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from optwatch.cli import SUBCOMMANDS
from optwatch.detect.panel import OF_THE_COURSE
from optwatch.detect.remedies import ADVICE
from optwatch.export.metrics import Reading, Service, families
from optwatch.export.names import column_tag
from optwatch.export.prometheus import prometheus_name
from optwatch.policy.facts import LossFact, LrFact
from optwatch.policy.load import default_text
from optwatch.policy.rules import Condition, Limits, Rule, Schedule
from optwatch.wire import meanings
from optwatch.wire.actions import ACTIONS
from optwatch.wire.messages import COUNTS, STATS
from optwatch_agent import mirrors

DIRECTORY = Path(__file__).parents[1] / "examples" / "reference"
NOTE = "Made from the code by `make reference`; changes here are lost.\n"


def pages() -> dict[str, str]:
    """The text of each file."""
    made = {"commands": commands(), "policy": policy(), "findings": findings(), "metrics": metrics()}
    return {f"{name}.md": text.rstrip() + "\n" for name, text in made.items()}


def commands() -> str:
    parts = [f"# Commands\n\n{NOTE}\n`optwatch COMMAND --help` says the same.\n"]
    for name, path in SUBCOMMANDS.items():
        module = importlib.import_module(path)
        parser = argparse.ArgumentParser(prog=f"optwatch {name}", add_help=False)
        module.configure(parser)
        parts.append(f"## optwatch {name}\n\n{module.HELP}\n\n{_options(parser)}")
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner, sub in action.choices.items():
                    parts.append(f"### optwatch {name} {inner}\n\n{_options(sub)}")
        parts.append(f"```\n{textwrap.dedent('  ' + module.EXAMPLE)}\n```\n")
    return "\n".join(parts)


def _options(parser: argparse.ArgumentParser) -> str:
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(
            action, (argparse._HelpAction, argparse._SubParsersAction)
        ):
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else None
        value = metavar or (
            "|".join(map(str, action.choices)) if action.choices else action.dest.rstrip("_").upper()
        )
        takes = action.nargs != 0
        shown = ", ".join(action.option_strings) + (f" {value}" if takes else "")
        words = formatter._expand_help(action) if action.help else ""
        rows.append((f"`{shown.strip() if action.option_strings else value}`", words))
    return _table(("option", "what it does"), rows) if rows else ""


def policy() -> str:
    parts = [
        f"# Policy\n\n{NOTE}\nA policy is a TOML file with one table `[limits]` and any number of "
        "`[[rule]]` and `[[schedule]]`. Give it to `optwatch daemon --policy FILE.toml`, which "
        "names the line of what is wrong and exits with status 2; `../policy.toml` is one to begin with.\n"
    ]
    tables = (
        ("[limits]", Limits),
        ("[[rule]]", Rule),
        ("Conditions: `when`", Condition),
        ("[[schedule]]", Schedule),
    )
    for title, kind in tables:
        parts.append(f"## {title}\n\n{inspect.getdoc(kind)}\n\n{_fields(kind)}")
    parts.append(
        f"`lr` is one of {_words(LrFact)}; `loss` one of {_words(LossFact)}. Kinds, severities and causes: "
        "`findings.md`.\n"
    )
    parts.append("## Actions: `do`\n")
    for name, action in ACTIONS.items():
        parts.append(f"### {name}\n\n{inspect.getdoc(action)}\n")
        if action.__struct_fields__:
            parts.append(_fields(action))
    parts.append(f"## The policy that is shipped\n\n```toml\n{default_text().rstrip()}\n```\n")
    return "\n".join(parts)


def findings() -> str:
    parts = [
        f"# Findings\n\n{NOTE}\n## Severities\n",
        _table(("severity", "what it means"), meanings.SEVERITIES),
    ]
    parts += ["## Kinds\n", _table(("kind", "what is found"), meanings.KINDS)]
    parts += [
        f"Where the loss need not fall, {_listed(sorted(OF_THE_COURSE))} are\n"
        "`watch`: in reinforcement learning, which is where a module of environments or a trainer by\n"
        "rewards (as `gymnasium`, or TRL's `GRPOTrainer`) is imported when an agent attaches, and where\n"
        "optimizers play against each other, as a GAN's, which their first steps show.\n",
        "## Causes\n\nEach with the advice that goes with it.\n",
        _table(("cause", "what to do"), ADVICE),
    ]
    return "\n".join(parts)


def metrics() -> str:
    parts = [f"# Metrics\n\n{NOTE}\n## Columns of a run\n"]
    columns = [(f"`{name}`", text, f"`{column_tag(name)}`") for name, text in meanings.COLUMNS.items()]
    parts.append(_table(("column", "what it is", "in TensorBoard"), columns))
    parts.append("## Statistics of each tensor, on sampled steps\n")
    named = [(f"`{name}`", meanings.STATISTICS[name]) for name in (*STATS, *COUNTS)]
    parts.append(_table(("statistic", "what it is"), named))
    parts.append("## Prometheus and OpenTelemetry\n")
    nothing = Reading(Service(runs={}, refused={}, backlog=0, trouble=""), ())
    exported = [
        (
            f"`{prometheus_name(family)}{'_total' if family.counter else ''}`",
            f"`{family.name}`",
            ", ".join(f"`{label}`" for label in family.labels),
            family.text,
        )
        for family in families(nothing)
    ]
    parts.append(_table(("Prometheus", "OpenTelemetry", "labels", "what it is"), exported))
    table = (mirrors.__doc__ or "").split("\n\n")[1]
    parts.append(f"## W&B, MLflow and Trackio, by `watch.mirror(run)`\n\n{table}\n")
    parts.append(
        f"The columns are {', '.join(f'`{name}`' for name in mirrors.SCALARS)} unless others are named.\n"
    )
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]] | dict[Any, str]) -> str:
    if isinstance(rows, dict):
        rows = [(f"`{name}`", text) for name, text in rows.items()]
    lines = [head, ("---",) * len(head), *rows]
    cells = (tuple(" ".join(cell.split()).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def _fields(kind: type) -> str:
    docs = dict(_attribute_docs(kind))
    rows = []
    for field in msgspec.structs.fields(kind):
        default = "" if field.default is msgspec.NODEFAULT else f"`{field.default!r}`"
        rows.append((f"`{field.name}`", default, docs.get(field.name, "")))
    return _table(("field", "default", "what it is"), rows)


def _attribute_docs(kind: type) -> Iterator[tuple[str, str]]:
    """The strings below the attributes of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for here, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(here, ast.AnnAssign)
            and isinstance(here.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield here.target.id, str(below.value.value)


def _words(literal: Any) -> str:
    return _listed(literal.__args__)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is old")
    given = parser.parse_args()
    DIRECTORY.mkdir(exist_ok=True)
    old = [name for name, text in pages().items() if not _is(DIRECTORY / name, text)]
    if not given.check:
        for name in old:
            (DIRECTORY / name).write_text(pages()[name])
    print(f"{'out of date' if given.check else 'written'}: {', '.join(old) or 'nothing'}")
    return 1 if given.check and old else 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
