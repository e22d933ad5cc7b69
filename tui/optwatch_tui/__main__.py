"""The UI that `optwatch serve` shows in a page: `python -m optwatch_tui [ADDRESS]`, read-only."""

import sys

from optwatch_tui import run

run(sys.argv[1] if len(sys.argv) > 1 else None, readonly=True, served=True)
