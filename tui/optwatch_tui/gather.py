"""What is asked of the daemon beside the run that is watched: glances for the list, series to compare,
the histograms of a tensor.

A thread and a connection of its own: a daemon that has to read an old run from its disk keeps nobody
waiting who watches another one.
"""

import threading
import time

import numpy as np

from optwatch.client import Client, DaemonError, Refusal
from optwatch.wire.histograms import WIDTH
from optwatch.wire.places import AddressError
from optwatch.wire.requests import RunInfo
from optwatch_tui.compared import ComparedRun
from optwatch_tui.feed import ComparedChanged, GlancesChanged, Post, SpreadChanged
from optwatch_tui.history import ColumnHistory
from optwatch_tui.model import Glance
from optwatch_tui.plan import planned_steps
from optwatch_tui.spread import Spread

_BUCKETS = 20
_POINTS = 1_000
_PATIENCE = 10.0
_AGAIN = 5.0
"""Seconds after which a live run is looked at anew in the list."""
_SPREAD_AGAIN = 2.0
"""Seconds between two looks for histograms."""
_PAGE = 64
_PAGES = 4
"""Of histograms, the newest first: a page of a large model are tens of MB for the daemon to read."""
_TICK = 0.5
"""Seconds between two looks at runs that are compared."""


class Gatherer:
    """Works while there is something to do; a daemon that is lost is only waited for."""

    def __init__(self, address: str | None, post: Post) -> None:
        self._address = address
        self._post = post
        self._runs: tuple[RunInfo, ...] = ()
        self._compared: tuple[str, ...] = ()
        self._tensor: tuple[str, str] | None = None
        """Run and tensor that is looked into."""
        self._due = threading.Event()
        self._stopped = threading.Event()
        self._glances: dict[str, Glance] = {}
        self._spread: Spread | None = None
        self._seen: dict[str, tuple[int, float]] = {}
        """For each run the step and the moment of its last glance."""
        self._thread = threading.Thread(target=self._work, name="optwatch-gather", daemon=True)
        self._thread.start()

    def glance_at(self, runs: tuple[RunInfo, ...]) -> None:
        """From now on have glances of these; () for none."""
        self._runs = runs
        self._due.set()

    def compare(self, runs: tuple[str, ...]) -> None:
        """From now on follow these; () for none."""
        self._compared = runs
        self._due.set()

    def look_into(self, run: str, tensor: str | None) -> None:
        """From now on have the histograms of a tensor of a run; None for none."""
        self._tensor = None if tensor is None else (run, tensor)
        self._due.set()

    def close(self) -> None:
        self._stopped.set()
        self._due.set()
        self._thread.join(timeout=_PATIENCE + 1)

    # --- in the thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._due.wait()
            try:
                if not self._stopped.is_set():
                    with Client(self._address, timeout=_PATIENCE) as client:
                        self._gather(client)
            except (DaemonError, AddressError, OSError):
                self._stopped.wait(_TICK)

    def _gather(self, client: Client) -> None:
        while not self._stopped.is_set() and (self._compared or self._runs or self._tensor):
            self._due.clear()
            if self._compared:
                self._compare(client, self._compared)
                self._due.wait(_TICK)
            elif self._tensor is not None:
                self._look(client, *self._tensor)
                self._due.wait(_SPREAD_AGAIN)
            elif (run := self._next()) is not None:
                self._glance(client, run)
            else:
                self._due.wait(_TICK)
        self._due.clear()

    def _next(self) -> RunInfo | None:
        """The run that most needs a glance: never seen before all, then the one seen longest ago."""
        now = time.monotonic()
        due = []
        for run in self._runs:
            step, seen = self._seen.get(run.run, (-1, -np.inf))
            if run.step != step and now - seen >= _AGAIN:
                due.append((seen, run))
        return min(due, key=lambda entry: entry[0])[1] if due else None

    def _glance(self, client: Client, run: RunInfo) -> None:
        self._seen[run.run] = (run.step, time.monotonic())
        try:
            config = client.status(run.run).config
            series, blocks = client.series(run.run, columns=("loss",), points=_BUCKETS)
        except Refusal:  # it has no loss, or is gone
            return
        kept = ColumnHistory()
        kept.append(series, blocks)
        step, values = kept.columns().column("loss")
        cuts = np.unique(step, return_index=True)[1]
        means = np.add.reduceat(values, cuts) / np.diff([*cuts, len(values)]) if len(step) else values
        self._glances = {**self._glances, run.run: Glance(tuple(means.tolist()), planned_steps(config))}
        self._post(GlancesChanged(self._glances))

    def _look(self, client: Client, run: str, tensor: str) -> None:
        """Have the histograms that are new, at first or after the run went back to an earlier step all."""
        known = self._spread
        if known is None or (known.run, known.tensor) != (run, tensor):
            known = None
        try:
            if known is not None and len(known.step) and client.status(run).step < known.step[-1]:
                known = None
            if known is None:
                self._look_back(client, run, tensor)
                return
            first = int(known.step[-1]) + 1 if len(known.step) else None
            _, blocks = client.histograms(run, tensor, first=first, limit=_PAGE)
        except Refusal:  # deleted meanwhile
            return
        if len(blocks.step):
            self._seen_spread(known.followed_by(blocks.step, blocks.counts[:, 0]))

    def _look_back(self, client: Client, run: str, tensor: str) -> None:
        spread = Spread(run, tensor, np.empty(0, np.int64), np.empty((0, WIDTH), np.uint64))
        for _ in range(_PAGES):
            last = int(spread.step[0]) - 1 if len(spread.step) else None
            _, blocks = client.histograms(run, tensor, last=last, limit=_PAGE)
            if self._tensor != (run, tensor):
                return
            if len(blocks.step):
                older = Spread(run, tensor, blocks.step, blocks.counts[:, 0])
                spread = older.followed_by(spread.step, spread.counts)
            self._seen_spread(spread)
            if len(blocks.step) < _PAGE:
                return

    def _seen_spread(self, spread: Spread) -> None:
        self._spread = spread
        self._post(SpreadChanged(spread))

    def _compare(self, client: Client, runs: tuple[str, ...]) -> None:
        found = []
        for run in runs:
            try:
                status = client.status(run)
                series, blocks = client.series(run, points=_POINTS)
                findings = client.findings(run)
            except Refusal:  # deleted meanwhile
                continue
            kept = ColumnHistory()
            kept.append(series, blocks)
            found.append(ComparedRun(status, kept.columns(), findings))
        if runs == self._compared:
            self._post(ComparedChanged(tuple(found)))
