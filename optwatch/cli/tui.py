"""optwatch tui"""

import argparse
import sys
from importlib.util import find_spec

from optwatch.cli.errors import Wrong
from optwatch.wire.places import AddressError, config_dir, find_daemon

HELP = "Watch runs live in the terminal, and act on them; starts a local daemon where none answers."
EXAMPLE = "optwatch tui"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", help="the daemon's address, such as tcp://127.0.0.1:47017")
    parser.add_argument("--readonly", action="store_true", help="look only: no key changes anything")


def run(args: argparse.Namespace) -> int:
    if find_spec("textual") is None:
        raise Wrong("the terminal UI needs its extra: pip install 'optwatch[tui]'")
    import optwatch_tui
    from optwatch_tui.settings import FILE, SettingsError, load

    try:
        find_daemon(args.address)
        settings = load(config_dir() / FILE)
    except (AddressError, SettingsError) as error:
        raise Wrong(str(error)) from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Wrong(
            "the terminal UI needs a terminal; `optwatch runs` and `optwatch status RUN` print instead"
        )
    optwatch_tui.run(args.address, readonly=args.readonly, settings=settings)
    return 0
