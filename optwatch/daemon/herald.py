"""Herald: tells people what happened, through Apprise, in a thread of its own.

The serving thread only leaves word: it never waits, and what does not fit in the queue is left out.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optwatch.daemon.changes import Changes
from optwatch.daemon.errors import StartError
from optwatch.daemon.run import Run
from optwatch.wire.actions import Command
from optwatch.wire.findings import SEVERITIES, Finding
from optwatch.wire.requests import RunState
from optwatch.wire.toml import TomlError

if TYPE_CHECKING:
    from optwatch.export.notices import Notice
    from optwatch.export.outbox import Outbox
    from optwatch.export.post import Post

log = logging.getLogger(__name__)

QUEUED = 1_000
"""Changes that may wait for a slow network."""
MOST_FOUND = 10_000
TURN = 1.0
"""Seconds between two looks at what is due."""
END = 5.0
"""Seconds that the end waits for what is being sent."""


@dataclass(frozen=True)
class _Standing:
    """Who of a run is in touch."""

    state: RunState
    down: frozenset[int]
    """Ranks of which nothing is heard."""


@dataclass(frozen=True)
class _Word:
    """What changed in a run."""

    run: str
    name: str
    step: int
    before: _Standing
    now: _Standing
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    at: float


@dataclass(frozen=True)
class _Way:
    outbox: "Outbox"
    post: "Post"


class Herald:
    """`tell` and `reread` are the serving thread's; all else happens in its own."""

    def __init__(self, path: Path) -> None:
        """Raises `StartError` where the file is there and cannot be used."""
        self._path = path
        try:
            self._ways = _ways(path)
        except TomlError as error:
            raise StartError(str(error)) from None
        self._queue: queue.Queue[_Word | None] = queue.Queue(QUEUED)
        self._rereading = self._ending = False
        self._full = False
        self._standings: dict[str, _Standing] = {}
        self._found: OrderedDict[tuple[str, int], int] = OrderedDict()
        """How severe each finding was when it was last told of."""
        self._failing: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="optwatch-notify", daemon=True)
        self._thread.start()

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of those who are told."""
        return tuple(way.outbox.target.name for way in self._ways)

    def tell(self, run: Run, changes: Changes) -> None:
        """Take what changed in a run. Never waits."""
        if not self._ways:
            return
        now = time.monotonic()
        silent = frozenset(n for n, rank in run.ranks.items() if rank.session.link(now) == "down")
        standing = _Standing(run.state(now), silent)
        before = self._standings.get(run.head.run, standing)
        self._standings[run.head.run] = standing
        if changes.findings or changes.commands or standing != before:
            self._put(
                _Word(
                    run.head.run,
                    run.head.name,
                    run.step,
                    before,
                    standing,
                    tuple(changes.findings.values()),
                    tuple(changes.commands.values()),
                    time.time(),
                )
            )

    def reread(self) -> None:
        """Take the file as it is now; a wrong one changes nothing. Never waits."""
        self._rereading = True
        self._put(None)

    def close(self) -> None:
        """Send what is due, and no more."""
        self._ending = True
        self._put(None)
        self._thread.join(END)
        if left := sum(way.outbox.waiting for way in self._ways):
            log.warning("%d notifications were not sent before the end", left)

    def _put(self, word: _Word | None) -> None:
        try:
            self._queue.put_nowait(word)
        except queue.Full:
            if not self._full:
                self._full = True
                log.warning("notifications fall behind, some are left out")

    def _run(self) -> None:
        while True:
            try:
                word = self._queue.get(timeout=TURN if any(w.outbox.waiting for w in self._ways) else None)
            except queue.Empty:
                word = None
            if self._rereading:
                self._rereading = False
                self._read_anew()
            if word is not None:
                for notice in self._notices(word):
                    for way in self._ways:
                        way.outbox.take(notice, notice.at)
            if self._queue.empty():  # what came together is told together
                self._full = False
                for way in self._ways:
                    self._send(way)
                if self._ending:
                    return

    def _notices(self, word: _Word) -> "list[Notice]":
        from optwatch.export.notices import command_notice, finding_notice, lost_notice, over_notice

        found: list[Notice] = []
        for finding in word.findings:
            if self._is_news(finding):
                found.append(finding_notice(word.name, finding, word.at))
            if finding.resolved_step is not None:
                found.append(over_notice(word.name, finding, word.at))
        for command in word.commands:
            if (notice := command_notice(word.name, command, word.at)) is not None:
                found.append(notice)
        if {word.before.state, word.now.state} == {"live", "stale"}:
            lost = word.now.state == "stale"
            found.append(lost_notice(word.run, word.name, None, word.step, lost, word.at))
        elif word.now.state == "live":
            for rank in sorted(word.before.down ^ word.now.down):
                lost = rank in word.now.down
                found.append(lost_notice(word.run, word.name, rank, word.step, lost, word.at))
        return found

    def _is_news(self, finding: Finding) -> bool:
        """Whether a finding is new, or more severe than it was: the others are told as they go on."""
        key, severity = (finding.run, finding.id), SEVERITIES.index(finding.severity)
        if severity <= self._found.get(key, -1):
            return False
        self._found[key] = severity
        if len(self._found) > MOST_FOUND:
            self._found.popitem(last=False)
        return True

    def _send(self, way: _Way) -> None:
        if (due := way.outbox.due(time.time(), self._ending)) is None:
            return
        notices, message = due
        name = way.outbox.target.name
        reason = way.post.send(message)
        way.outbox.sent(notices, time.time(), not reason)
        if reason and name not in self._failing:
            self._failing.add(name)
            log.warning("notifications do not reach %r, it is tried again: %s", name, reason)
        elif not reason:
            self._failing.discard(name)
            log.info("%r was told of %d", name, len(notices))

    def _read_anew(self) -> None:
        try:
            fresh = _ways(self._path)
        except TomlError as error:
            log.error("SIGHUP: whom to notify stays as it was: %s", error)
            return
        kept = {way.outbox.target: way.outbox for way in self._ways}
        self._ways = tuple(_Way(kept.get(way.outbox.target, way.outbox), way.post) for way in fresh)
        log.info("SIGHUP: %s was read anew, it names %d targets", self._path, len(fresh))


def _ways(path: Path) -> tuple[_Way, ...]:
    """The ways to all targets of a file, none where there is no file. Raises `TomlError`."""
    if not path.exists():  # most users have none, and their daemons start without all this
        return ()
    from optwatch.export.outbox import Outbox
    from optwatch.export.targets import read_targets

    targets = read_targets(path)
    if not targets:
        return ()
    try:
        from optwatch.export.post import Post
    except ModuleNotFoundError:
        raise TomlError(f"{path} needs an extra: pip install 'optwatch[notify]'") from None
    ways = []
    for target in targets:
        try:
            ways.append(_Way(Outbox(target), Post(target.address())))
        except (ValueError, LookupError) as error:
            raise TomlError(f"{path}: target {target.name!r}: {error.args[0]}") from None
    return tuple(ways)
