"""optwatch tui"""

import argparse
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from optwatch.cli.errors import Wrong
from optwatch.wire.places import AddressError, config_dir, find_daemon

if TYPE_CHECKING:
    from optwatch_tui.settings import Settings

HELP = "Watch runs live in the terminal, and act on them; starts a local daemon where none answers."
EXAMPLE = "optwatch tui"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", help="the daemon's address, such as tcp://127.0.0.1:47017")
    parser.add_argument("--readonly", action="store_true", help="look only: no key changes anything")


def run(args: argparse.Namespace) -> int:
    if find_spec("textual") is None:
        raise Wrong("the terminal UI needs its extra: pip install 'optwatch[tui]'")
    import optwatch_tui

    try:
        find_daemon(args.address)
    except AddressError as error:
        raise Wrong(str(error)) from None
    settings = users_settings()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Wrong(
            "the terminal UI needs a terminal; `optwatch runs` and `optwatch status RUN` print instead"
        )
    optwatch_tui.run(args.address, readonly=args.readonly, settings=settings)
    return 0


def users_settings() -> "Settings":
    """Keys, theme and smoothing of the user's own.

    Raises:
        Wrong: what is wrong with the file, in a sentence.
    """
    from optwatch_tui.settings import FILE, SettingsError, load

    try:
        return load(config_dir() / FILE)
    except SettingsError as error:
        raise Wrong(str(error)) from None
