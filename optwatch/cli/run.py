"""`optwatch run -- script.py ARGS`: an unchanged training script, watched."""

import argparse
import importlib.util
from pathlib import Path

from optwatch.cli.errors import Wrong

HELP = "Run an unchanged training script with the agent attached to its optimizers."
EXAMPLE = "optwatch run --name baseline -- train.py --lr 0.1      (or: optwatch run -m package.train)"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="the run's name; by default the script's")
    parser.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m does")
    parser.add_argument(
        "script", nargs=argparse.REMAINDER, metavar="SCRIPT ARGS", help="the script, and what it is given"
    )


def run(args: argparse.Namespace) -> int:
    target, *arguments = args.script[1:] if args.script[:1] == ["--"] else args.script or [""]
    if not target:
        raise Wrong("which script? For example: optwatch run -- train.py --lr 0.1")
    if not args.module and not Path(target).is_file():
        raise Wrong(f"there is no script {target}")
    try:
        if args.module and importlib.util.find_spec(target) is None:
            raise Wrong(f"there is no module {target}")
    except ModuleNotFoundError as error:
        raise Wrong(f"there is no module {target}: {error}") from None
    try:
        from optwatch_agent.unchanged import run_unchanged
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise Wrong(
            "a training needs PyTorch, which is not installed here: pip install 'optwatch[torch]'"
        ) from None
    run_unchanged(target, arguments, module=args.module, name=args.name)
    return 0
