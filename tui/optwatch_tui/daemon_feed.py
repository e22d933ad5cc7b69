"""The feed from a daemon: a thread that follows it and posts frozen snapshots.

The thread touches no widget and no screen touches a socket: orders go to the thread through a queue,
and what it learns comes back as messages.
"""

import os
import queue
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

from optwatch.client import Client, DaemonError, DaemonStopped, DaemonUnreachable, Follower, Refusal
from optwatch.client.local import start_daemon
from optwatch.wire import limits
from optwatch.wire.places import AddressError, find_daemon
from optwatch.wire.requests import Accepted, Delta, Ended, Greet, Request, RunInfo, RunList
from optwatch_tui.feed import Answered, LinkChanged, Post, RunChanged, RunsChanged
from optwatch_tui.gather import Gatherer
from optwatch_tui.model import Link, LinkState, RunModel

_TICK = 0.25
"""Seconds between two snapshots: nobody reads faster."""
_SILENCE = 0.75
"""Seconds without a word after which the daemon is asked whether it is still there."""
_PROMPT = 0.25
"""Seconds that it has to answer before the link is shown as lost."""
_PATIENCE = 1.5
"""Seconds that it has to answer before the connection is made anew."""
_RETRY = 0.5
_POINTS = 8_000
"""Rows of history to begin with: enough to zoom in eight times."""


@dataclass(frozen=True)
class _Watch:
    run: str | None


class DaemonFeed:
    """The feed from a real daemon. It reconnects by itself, also to a daemon that came back elsewhere."""

    def __init__(self, address: str | None = None, *, readonly: bool = False, start: bool = True) -> None:
        """`address`: None looks it up anew at each connection, and where `start`, starts a daemon if none is.

        `readonly`: whatever is ordered, nothing is asked of the daemon that could change anything.
        """
        self._address = address
        self._readonly = readonly
        self._may_start = start and address is None and not os.environ.get("OPTWATCH_DAEMON")
        self._orders: queue.SimpleQueue[Request | _Watch | None] = queue.SimpleQueue()
        self._not_started = ""
        """Why no local daemon could be started."""
        self._wanted: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="optwatch-feed", daemon=True)
        self._gatherer: Gatherer | None = None
        self._post: Post = lambda message: None

    def start(self, post: Post) -> None:
        self._post = post
        self._gatherer = Gatherer(self._address, lambda message: self._post(message))
        self._thread.start()

    def watch(self, run: str | None) -> None:
        self._orders.put(_Watch(run))

    def ask(self, request: Request) -> None:
        self._orders.put(request)

    def compare(self, runs: tuple[str, ...]) -> None:
        if self._gatherer is not None:
            self._gatherer.compare(runs)

    def look_into(self, run: str, tensor: str | None) -> None:
        if self._gatherer is not None:
            self._gatherer.look_into(run, tensor)

    def close(self) -> None:
        self._post = lambda message: None
        self._stopped.set()
        if self._gatherer is not None:
            self._gatherer.close()
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    # --- in the thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        self._say("connecting")
        lost_since: float | None = None
        stopped = ""
        while not self._stopped.is_set():
            try:
                with Client(self._address, timeout=_PATIENCE) as client:
                    self._may_start, self._not_started, lost_since, stopped = False, "", None, ""
                    self._say("live")
                    self._follow(client)
            except (DaemonError, AddressError, OSError) as error:
                if self._may_start and isinstance(error, DaemonUnreachable):
                    self._start_daemon()
                    continue
                lost_since = time.time() if lost_since is None else lost_since
                # That nobody answers then is no news: why it is so is.
                stopped = str(error) if isinstance(error, DaemonStopped) else stopped
                self._say("lost", lost_since, self._not_started or stopped or str(error))
                self._wait_for_orders(_RETRY, None)

    def _start_daemon(self) -> None:
        self._may_start = False
        self._say("connecting", reason="starting a local daemon")
        try:
            start_daemon()
        except DaemonUnreachable as error:
            self._not_started = str(error)

    def _say(self, state: LinkState, since: float | None = None, reason: str = "") -> None:
        try:
            address = find_daemon(self._address)
        except AddressError:
            address = self._address or ""
        self._post(LinkChanged(Link(state, address, time.time() if since is None else since, reason)))

    def _follow(self, client: Client) -> None:
        """Until the feed is closed; raises `DaemonError` once the daemon is lost or has said goodbye."""
        with client.follow(None) as runs:
            try:
                self._follow_runs(client, runs)
            except DaemonUnreachable:
                self._take_runs(runs)  # its goodbye may have come while an answer was waited for
                raise

    def _follow_runs(self, client: Client, runs: Follower) -> None:
        watched: _Watched | None = None
        with ExitStack() as followed:
            self._list(client.runs())
            heard = time.monotonic()
            while not self._stopped.is_set():
                if watched is None or watched.run != self._wanted:
                    followed.close()
                    watched = self._open(client, followed)
                tick = time.monotonic() + _TICK
                news = self._take_runs(runs)
                if watched is not None and watched.take(client):
                    self._post(RunChanged(watched.model.snapshot()))
                    news = True
                if news:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENCE:
                    self._ask_whether_there(client)
                    heard = time.monotonic()
                self._wait_for_orders(tick - time.monotonic(), client)

    def _ask_whether_there(self, client: Client) -> None:
        """Say soon that nothing comes, and wait longer before the connection is given up."""
        try:
            client.ask(Greet(limits.PROTOCOL), timeout=_PROMPT)
            return
        except DaemonUnreachable:
            since = time.time() - _SILENCE - _PROMPT
            self._say("lost", since, "the daemon has not answered for a second")
        client.ask(Greet(limits.PROTOCOL))
        self._say("live")

    def _open(self, client: Client, followed: ExitStack) -> "_Watched | None":
        """Begin to follow the wanted run, None where there is none (or not yet) of that name."""
        if self._wanted is None:
            return None
        try:
            follower = followed.enter_context(client.follow(self._wanted))
            watched = _Watched(client, self._wanted, follower)
        except Refusal:
            followed.close()
            return None
        self._post(RunChanged(watched.model.snapshot()))
        return watched

    def _list(self, runs: tuple[RunInfo, ...]) -> None:
        """Tell of the list, and have glances of its runs as long as it is what is looked at."""
        self._post(RunsChanged(runs))
        if self._gatherer is not None:
            self._gatherer.glance_at(runs if self._wanted is None else ())

    def _take_runs(self, follower: Follower) -> bool:
        newest: RunList | None = None
        while (news := follower.receive(0)) is not None:
            if isinstance(news.message, RunList):
                newest = news.message
            elif isinstance(news.message, Ended):
                raise DaemonStopped(f"the daemon has stopped: {news.message.reason}")
        if newest is not None:
            self._list(newest.runs)
        return newest is not None

    def _wait_for_orders(self, seconds: float, client: Client | None) -> None:
        """Carry out what was ordered, for `seconds` at least; without a client requests are refused."""
        end = time.monotonic() + seconds
        while not self._stopped.is_set():
            try:
                order = self._orders.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(order, _Watch):
                self._wanted = order.run
                return
            if order is not None:
                self._carry_out(order, client)

    def _carry_out(self, request: Request, client: Client | None) -> None:
        if self._readonly:  # screens order nothing but changes, and reading is not ordered
            self._post(Answered(request, None, "read-only: it was not sent"))
            return
        if client is None:
            self._post(Answered(request, None, "no link to the daemon: it was not sent"))
            return
        try:
            reply, _ = client.ask(request)
        except Refusal as refusal:
            self._post(Answered(request, None, refusal.reason))
        except DaemonUnreachable:
            self._post(Answered(request, None, "the daemon did not answer: see below whether it took it"))
            raise
        else:
            self._post(Answered(request, reply.command if isinstance(reply, Accepted) else None))


class _Watched:
    """A run that is followed: its model, and the subscription that keeps it up to date."""

    def __init__(self, client: Client, run: str, follower: Follower) -> None:
        """Raises `Refusal` where there is no such run."""
        self.run = run
        self._follower = follower
        self.model = RunModel(*client.view(run, points=_POINTS))

    def take(self, client: Client) -> bool:
        """Fold in what was published since; whether anything was."""
        changed = False
        while (news := self._follower.receive(0)) is not None:
            if not isinstance(news.message, Delta) or news.series is None or news.tensors is None:
                continue
            if not self.model.update(news.message, news.series, news.tensors):
                self.model = RunModel(*client.view(self.run, points=_POINTS))
            changed = True
        return changed
