"""The terminal UI."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optwatch_tui.settings import Settings


def run(
    address: str | None = None,
    *,
    watch: str | None = None,
    readonly: bool = False,
    served: bool = False,
    settings: "Settings | None" = None,
) -> None:
    """Show the runs of a daemon until the user quits.

    Args:
        address: as `optwatch.wire.places.find_daemon` takes it; without one, a local daemon is started
            where none answers, and goes on when the user has quit.
        watch: the run to open, by id or name; else the first one that is live.
        readonly: nothing can be changed.
        served: shown to a browser by `optwatch_tui.serve`: no file is written, no daemon started.
        settings: the user's keys, theme and smoothing (`optwatch_tui.settings.load`).
    """
    from optwatch_tui.app import OptwatchApp
    from optwatch_tui.daemon_feed import DaemonFeed
    from optwatch_tui.settings import DEFAULTS

    feed = DaemonFeed(address, readonly=readonly, start=not served)
    app = OptwatchApp(feed, run=watch, readonly=readonly, served=served, settings=settings or DEFAULTS)
    app.run()
