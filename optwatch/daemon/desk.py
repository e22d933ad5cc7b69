"""The desk: answers what clients ask. Every request has exactly one reply, if only a refusal."""

import logging
import os
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from optwatch import __version__
from optwatch.daemon.clock import steady
from optwatch.daemon.entries import CommandError, Entry
from optwatch.daemon.head import UnknownRun
from optwatch.daemon.lane import histogram_reply, tensor_reply
from optwatch.daemon.publish import Publisher
from optwatch.daemon.refusals import Refusals
from optwatch.daemon.run import Run
from optwatch.daemon.runs import Runs
from optwatch.daemon.status import rank_stack, run_info, run_status
from optwatch.daemon.store import Store
from optwatch.series.points import Points
from optwatch.series.timeline import Timeline, rows
from optwatch.wire import limits
from optwatch.wire.frames import Parts, SeriesBlocks, WireError, request_decoder, unpack
from optwatch.wire.guests import Role
from optwatch.wire.requests import (
    Accepted,
    Act,
    AddMark,
    Approve,
    Commands,
    Dismiss,
    Findings,
    GetCommands,
    GetFindings,
    GetHistograms,
    GetSeries,
    GetStacks,
    GetStatus,
    GetTensors,
    GetView,
    Greet,
    Greeting,
    ListRuns,
    Refused,
    Reply,
    Request,
    Series,
    SetMode,
    Stacks,
    Status,
    StopDaemon,
    Undo,
    View,
)
from optwatch.wire.requests import (
    Runs as RunsReply,
)

log = logging.getLogger(__name__)

PAGE_BYTES = 16 << 20
MAX_POINTS = 20_000
VIEW_RECORDS = 96
MAX_RECORDS = 4_096
MAX_HISTOGRAMS = 256
MAX_BLOCK = 48 << 20

Blocks = tuple[np.ndarray[Any, Any], ...]
Answer = tuple[Reply, Blocks]
ACTING = (Act, Approve, Dismiss, Undo, SetMode, AddMark, StopDaemon)


class Desk:
    """Answers one request at a time, in the serving thread."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        publisher: Publisher,
        daemon: str,
        publish: str,
        stop: Callable[[], None],
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._store = store
        self._runs = runs
        self._publisher = publisher
        self._daemon = daemon
        self._publish = publish
        self._stop = stop
        self._handlers: dict[type, Callable[..., Answer]] = {
            ListRuns: self._list_runs,
            GetStatus: self._status,
            GetFindings: self._findings,
            GetCommands: self._commands,
            GetStacks: self._stacks,
            GetView: self._view,
            GetSeries: self._series,
            GetTensors: self._tensors,
            GetHistograms: self._histograms,
            Act: self._act,
            Approve: self._approve,
            Dismiss: self._dismiss,
            Undo: self._undo,
            SetMode: self._set_mode,
            AddMark: self._add_mark,
            StopDaemon: self._stop_daemon,
        }

    def answer(self, parts: Parts, user: str, role: Role, now: float) -> Answer:
        """The reply to a request as it came from the wire. Never raises on what a client sends."""
        try:
            request, _ = unpack(parts, request_decoder)
            return self._answer(request, user, role, now)
        except (WireError, ValueError) as error:
            return Refused("bad_request", str(error)[: limits.MAX_TEXT]), ()
        except UnknownRun as error:
            return Refused("unknown_run", str(error.args[0])), ()
        except CommandError as error:
            return Refused(error.code, str(error)), ()
        except Exception as error:  # a fault of ours, or a disk that cannot be read
            log.exception("a request could not be answered")
            return Refused(
                "unavailable", f"the daemon failed at this request, its log says where: {error!r}"
            ), ()

    def _answer(self, request: Request, user: str, role: Role, now: float) -> Answer:
        if isinstance(request, Greet):
            return self._greet(request, role)
        run, in_full = getattr(request, "run", ""), str(request)[: limits.MAX_TEXT]
        if role == "agent" or (role == "viewer" and isinstance(request, ACTING)):
            # Not each of a flood: what somebody may not do must not fill the disk either.
            if self._refusals.note(user, f"its role {role} may not ask for {type(request).__name__}"):
                self._store.audit(time.time(), user, run, "refused", in_full)
            return Refused("forbidden", f"the key of {user} has the role {role}: it may not do this"), ()
        if isinstance(request, ACTING):
            if self._store.trouble and not isinstance(request, StopDaemon):
                return Refused("unavailable", f"nothing can be commanded while {self._store.trouble}"), ()
            self._store.audit(time.time(), user, run, type(request).__name__, in_full)
            log.info("%s asks: %s", user, request)
            return self._handlers[type(request)](request, user, now)
        return self._handlers[type(request)](request, now)

    # --- questions ------------------------------------------------------------------------------------

    def _greet(self, request: Greet, role: Role) -> Answer:
        if request.protocol != limits.PROTOCOL:
            return Refused(
                "bad_request",
                f"the client speaks protocol {request.protocol} and this daemon {limits.PROTOCOL}: "
                "run the same version of optwatch on both sides",
            ), ()
        return Greeting(
            protocol=limits.PROTOCOL,
            version=__version__,
            daemon=self._daemon,
            publish=self._publish,
            pid=os.getpid(),
            store=str(self._store.directory),
            mode=self._runs.mode,
            role=role,
            trouble=self._store.trouble,
            time=time.time(),
        ), ()

    def _list_runs(self, request: ListRuns, now: float) -> Answer:
        return RunsReply(tuple(run_info(run, now) for run in self._runs.newest_first())), ()

    def _status(self, request: GetStatus, now: float) -> Answer:
        return Status(run_status(self._runs.find(request.run), now)), ()

    def _findings(self, request: GetFindings, now: float) -> Answer:
        return Findings(tuple(self._runs.find(request.run).findings.values())), ()

    def _commands(self, request: GetCommands, now: float) -> Answer:
        return Commands(self._runs.find(request.run).book.commands), ()

    def _stacks(self, request: GetStacks, now: float) -> Answer:
        run = self._runs.find(request.run)
        ranks = sorted(run.ranks) if request.rank is None else [request.rank]
        if unknown := [rank for rank in ranks if rank not in run.ranks]:
            return Refused("bad_request", f"there is no rank {unknown[0]} in this run"), ()
        if request.ask:
            run.ask_stacks(ranks)
        return Stacks(tuple(rank_stack(run.ranks[rank], now) for rank in ranks)), ()

    def _view(self, request: GetView, now: float) -> Answer:
        run = self._runs.find(request.run)
        seq = self._publisher.flush(run, now)
        lane = run.lane(0)
        timeline = lane.timeline
        series, series_blocks = _window(timeline, timeline.columns, None, None, _count(request.points))
        records = list(islice(reversed(lane.records), VIEW_RECORDS))[::-1]
        tensors, tensor_blocks = tensor_reply(_fitting(records))
        view = View(
            seq=seq,
            status=run_status(run, now),
            findings=tuple(run.findings.values()),
            commands=run.book.commands,
            markers=tuple(run.markers),
            series=series,
            tensors=tensors,
        )
        return view, (*series_blocks.blocks(), *tensor_blocks.blocks())

    def _series(self, request: GetSeries, now: float) -> Answer:
        run = self._runs.find(request.run)
        timeline = run.lane(request.optimizer).timeline if request.optimizer in run.lanes else Timeline()
        columns = request.columns or timeline.columns
        if unknown := [name for name in columns if name not in timeline.columns]:
            known = ", ".join(timeline.columns) or "none"
            return Refused("bad_request", f"there is no column {unknown[0]!r}: there are {known}"), ()
        if len(set(columns)) < len(columns):
            return Refused("bad_request", "a column is asked for twice"), ()
        _check_range(request.first, request.last)
        points_wanted = None if request.points is None else _count(request.points)
        if not columns or (points_wanted is not None and request.rank is None):
            series, blocks = _window(timeline, columns, request.first, request.last, points_wanted)
            return series, blocks.blocks()
        self._store.settle()
        page = max(PAGE_BYTES // (9 * len(columns) + 8), 1)
        found: list[Points] = []
        for points in self._runs.history.points(
            run.head.run, request.optimizer, request.rank, request.first, request.last
        ):
            found.append(points)
            if request.points is None and sum(map(len, found)) >= page:
                break
        whole = Timeline(capacity=max(sum(map(len, found)), 4))
        for points in found:
            whole.append(points)
        missing = tuple(name for name in columns if name not in whole.columns)
        series, blocks = _window(
            whole,
            tuple(n for n in columns if n not in missing),
            None,
            None,
            points_wanted,
        )
        return _pad(series, blocks, columns, None if request.points else page)

    def _tensors(self, request: GetTensors, now: float) -> Answer:
        run = self._runs.find(request.run)
        self._store.settle()
        if not 0 <= request.limit <= MAX_RECORDS:
            return Refused("bad_request", f"limit is from 0 to {MAX_RECORDS}"), ()
        _check_range(request.first, request.last)
        records = self._runs.history.records(
            run.head.run, request.optimizer, request.first, request.last, request.limit
        )
        tensors, blocks = tensor_reply(_fitting(records))
        return tensors, blocks.blocks()

    def _histograms(self, request: GetHistograms, now: float) -> Answer:
        run = self._runs.find(request.run)
        self._store.settle()
        if not 0 <= request.limit <= MAX_HISTOGRAMS:
            return Refused("bad_request", f"limit is from 0 to {MAX_HISTOGRAMS}"), ()
        _check_range(request.first, request.last)
        records = self._runs.history.histograms(
            run.head.run, request.optimizer, request.first, request.last, request.limit, request.tensor
        )
        histograms, blocks = histogram_reply(_fitting(records))
        return histograms, blocks.blocks()

    # --- wishes ---------------------------------------------------------------------------------------

    def _act(self, request: Act, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        control = run.control(now)
        if control != "armed" and run.state(now) == "ended":
            raise CommandError("unavailable", f"nothing can be commanded: {control}")
        entry = run.book.ask(
            request.action,
            run.resolve(request.action, request.args),
            asked_by=user,
            why=request.why[: limits.MAX_TEXT] or "by hand",
            now=steady(),
            allow=run.head.allow,
        )
        return self._acted(run, entry)

    def _approve(self, request: Approve, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        return self._acted(run, run.book.approve(request.command, user, steady()))

    def _dismiss(self, request: Dismiss, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        return self._acted(run, run.book.dismiss(request.command, user, request.reason[: limits.MAX_TEXT]))

    def _undo(self, request: Undo, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        return self._acted(run, run.undo(request.command, user))

    def _set_mode(self, request: SetMode, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        run.set_mode(request.mode)
        return Accepted(), ()

    def _add_mark(self, request: AddMark, user: str, now: float) -> Answer:
        run = self._runs.find(request.run)
        run.mark_by_hand(request.text[: limits.MAX_TEXT])
        return Accepted(), ()

    def _stop_daemon(self, request: StopDaemon, user: str, now: float) -> Answer:
        self._stop()
        return Accepted(), ()

    def _acted(self, run: Run, entry: Entry) -> Answer:
        run.touched = True
        return Accepted(entry.command), ()


def _window(
    timeline: Timeline, columns: tuple[str, ...], first: int | None, last: int | None, points: int | None
) -> tuple[Series, SeriesBlocks]:
    step, values, logged = timeline.window(first, last, columns, points)
    reduced = len(step) > 1 and bool(np.any(step[1:] == step[:-1]))
    return Series(columns=columns, reduced=reduced), SeriesBlocks(step, values, logged.view(np.uint8))


def _pad(
    series: Series, blocks: SeriesBlocks, columns: tuple[str, ...], page: int | None
) -> tuple[Series, Blocks]:
    """The columns in the order asked for, those that the rows lack as not logged; one page of them."""
    points = Points(blocks.step)
    values, logged = rows(points, columns)[1:]
    for at, name in enumerate(series.columns):
        values[:, columns.index(name)] = blocks.values[:, at]
        logged[:, columns.index(name)] = blocks.logged[:, at]
    out = SeriesBlocks(blocks.step[:page], values[:page], logged[:page].view(np.uint8))
    return Series(columns=columns, reduced=series.reduced), out.blocks()


def _fitting(records: list[Any]) -> list[Any]:
    """The newest records, as many as a reply may carry."""
    size = 0
    for at in range(len(records) - 1, -1, -1):
        size += max(records[at].stats.nbytes, 8 * records[at].counts.size)
        if size > MAX_BLOCK:
            return records[at + 1 :]
    return records


def _check_range(*steps: int | None) -> None:
    if any(step is not None and abs(step) > limits.MAX_STEP for step in steps):
        raise ValueError("a step out of range")


def _count(points: int) -> int:
    if not 2 <= points <= MAX_POINTS:
        raise ValueError(f"points is from 2 to {MAX_POINTS}")
    return points
