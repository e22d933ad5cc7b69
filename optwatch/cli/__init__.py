"""The command line: one small file per subcommand.

A subcommand is a module with `HELP` (one line), `EXAMPLE`, `configure(parser)` and `run(args) -> int`,
and its name in `SUBCOMMANDS`. It raises `Wrong` for what the user can put right.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from optwatch import __version__
from optwatch.cli.errors import Wrong
from optwatch.cli.show import plain

SUBCOMMANDS = {
    "demo": "optwatch.cli.demo",
    "tui": "optwatch.cli.tui",
    "serve": "optwatch.cli.serve",
    "daemon": "optwatch.cli.daemon",
    "runs": "optwatch.cli.runs",
    "status": "optwatch.cli.status",
    "findings": "optwatch.cli.findings",
    "stacks": "optwatch.cli.stacks",
    "commands": "optwatch.cli.commands",
    "command": "optwatch.cli.command",
    "approve": "optwatch.cli.approve",
    "dismiss": "optwatch.cli.dismiss",
    "undo": "optwatch.cli.undo",
    "mode": "optwatch.cli.mode",
    "mark": "optwatch.cli.mark",
    "export": "optwatch.cli.export",
    "run": "optwatch.cli.run",
    "diagnose": "optwatch.cli.diagnose",
    "backtest": "optwatch.cli.backtest",
    "replay": "optwatch.cli.replay",
    "store": "optwatch.cli.store",
    "keys": "optwatch.cli.keys",
    "notify": "optwatch.cli.notify",
    "doctor": "optwatch.cli.doctor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit status: 0 done, 1 not done, 2 wrong use or bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
        return int(options.run(options))
    except Wrong as error:
        print(f"optwatch {options.command}: {plain(str(error))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if arguments[:1] == ["run"]:  # its script ends as it would without us
            raise
        if isinstance(error, KeyboardInterrupt):
            return 130
        sys.stderr.close()  # the reader of our output went away, as `head` does
        return 1


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the subcommand that is called for, or of all."""
    parser = argparse.ArgumentParser(
        prog="optwatch",
        description="See what goes wrong in a training run, and act on it.",
        epilog="Start with `optwatch demo`; `optwatch COMMAND --help` teaches each command.",
    )
    parser.add_argument("--version", action="version", version=f"optwatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in SUBCOMMANDS.items():
        # A module is imported only where it is needed: for its own use, or for the list of all.
        if arguments[:1] and arguments[0] in SUBCOMMANDS and arguments[0] != name:
            continue
        module = importlib.import_module(path)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(command)
        command.set_defaults(run=module.run)
    return parser
