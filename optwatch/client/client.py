"""Client: asks a daemon, one question at a time."""

import itertools
import os
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
import zmq

from optwatch.client.errors import DaemonError, DaemonUnreachable, Refusal
from optwatch.client.follower import Follower
from optwatch.client.link import connect, publish_address, resolve
from optwatch.wire import limits
from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.frames import (
    CLIENT,
    RUNS_TOPIC,
    Buffer,
    HistogramBlocks,
    SeriesBlocks,
    TensorBlocks,
    WireError,
    pack,
    reply_decoder,
    unpack,
)
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
    Histograms,
    ListRuns,
    Mode,
    RankStack,
    Refused,
    Reply,
    Request,
    RunInfo,
    Runs,
    RunStatus,
    Series,
    SetMode,
    Stacks,
    Status,
    StopDaemon,
    Tensors,
    Undo,
    View,
)
from optwatch.wire.sending import send

Blocks = tuple[Buffer, ...]
Kind = TypeVar("Kind", bound=msgspec.Struct)


class Client:
    """A connection to a daemon, to be used by one thread at a time. It survives the daemon's restart.

    Args:
        address: as `optwatch.wire.places.find_daemon` takes it.
        timeout: seconds to wait for each answer.

    Raises:
        DaemonUnreachable: no daemon answers there within the timeout.
    """

    def __init__(self, address: str | None = None, timeout: float = 5.0) -> None:
        self.address, self._key = resolve(address)
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._socket = connect(self._context, zmq.DEALER, self.address, self._key)
            self.greeting = self.greet()
        except DaemonError:
            self._context.destroy(linger=0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; followers made from it end too."""
        self._context.destroy(linger=0)

    def ask(self, request: Request, timeout: float | None = None) -> tuple[Reply, Blocks]:
        """Ask, and wait for the reply and its blocks as they came.

        Raises:
            Refusal: the daemon refused it.
            DaemonUnreachable: no reply came in time.
            DaemonError: what came is no reply.
        """
        number = next(self._numbers).to_bytes(8, "little")
        try:
            send(self._socket, [CLIENT, number, *pack(request)])
        except zmq.Again:
            raise self._unreachable() from None
        while self._socket.poll(int((timeout or self._timeout) * 1_000)):
            parts = self._socket.recv_multipart()
            if parts[0] != number:
                continue  # the late answer to a question that was given up
            try:
                reply, blocks = unpack(parts[1:], reply_decoder)
            except WireError as error:
                raise DaemonError(f"the daemon at {self.address} sent {error}") from None
            if isinstance(reply, Refused):
                raise Refusal(reply.code, reply.reason)
            return reply, tuple(blocks)
        raise self._unreachable()

    def greet(self) -> Greeting:
        return self._get(Greet(limits.PROTOCOL), Greeting)

    def runs(self) -> tuple[RunInfo, ...]:
        """All runs, the newest first."""
        return self._get(ListRuns(), Runs).runs

    def status(self, run: str) -> RunStatus:
        return self._get(GetStatus(run), Status).status

    def findings(self, run: str) -> tuple[Finding, ...]:
        return self._get(GetFindings(run), Findings).findings

    def commands(self, run: str) -> tuple[Command, ...]:
        return self._get(GetCommands(run), Commands).commands

    def stacks(self, run: str, rank: int | None = None, ask: bool = True) -> tuple[RankStack, ...]:
        """Where training threads were, as the ranks last said; `ask` them anew, and look again soon."""
        return self._get(GetStacks(run, rank, ask), Stacks).stacks

    def view(self, run: str, points: int = 2_000) -> tuple[View, SeriesBlocks, TensorBlocks]:
        """Everything a screen needs to begin."""
        view, blocks = self._get_blocks(GetView(run, points), View)
        return view, _series_blocks(view.series, blocks[:3]), _tensor_blocks(view.tensors, blocks[3:])

    def series(
        self,
        run: str,
        *,
        optimizer: int = 0,
        rank: int | None = None,
        columns: tuple[str, ...] = (),
        first: int | None = None,
        last: int | None = None,
        points: int | None = None,
    ) -> tuple[Series, SeriesBlocks]:
        """Columns between two steps: whole, however many rows that is, or reduced to about `points` rows."""
        pages: list[SeriesBlocks] = []
        while True:
            request = GetSeries(
                run=run,
                optimizer=optimizer,
                rank=rank,
                columns=columns,
                first=first,
                last=last,
                points=points,
            )
            series, blocks = self._get_blocks(request, Series)
            columns = columns or series.columns  # the same ones on every page
            page = _series_blocks(series, blocks)
            pages.append(page)
            if points is not None or len(page.step) == 0:
                break
            first = int(page.step[-1]) + 1
        if len(pages) <= 2:
            return series, pages[0]
        return series, SeriesBlocks(
            np.concatenate([page.step for page in pages]),
            np.concatenate([page.values for page in pages]),
            np.concatenate([page.logged for page in pages]),
        )

    def tensors(
        self,
        run: str,
        *,
        optimizer: int = 0,
        first: int | None = None,
        last: int | None = None,
        limit: int = 256,
    ) -> tuple[Tensors, TensorBlocks]:
        """Per-tensor statistics between two steps, at most the last `limit` samples."""
        request = GetTensors(run=run, optimizer=optimizer, first=first, last=last, limit=limit)
        tensors, blocks = self._get_blocks(request, Tensors)
        return tensors, _tensor_blocks(tensors, blocks)

    def histograms(
        self,
        run: str,
        tensor: str | None = None,
        *,
        optimizer: int = 0,
        first: int | None = None,
        last: int | None = None,
        limit: int = 64,
    ) -> tuple[Histograms, HistogramBlocks]:
        """How the gradient of one tensor or of all (None) was spread, at the last steps that have it."""
        request = GetHistograms(
            run=run, tensor=tensor, optimizer=optimizer, first=first, last=last, limit=limit
        )
        histograms, blocks = self._get_blocks(request, Histograms)
        try:
            return histograms, HistogramBlocks.read(blocks, len(histograms.tensors))
        except WireError as error:
            raise DaemonError(f"the daemon sent {error}") from None

    def act(self, run: str, action: str, args: dict[str, Any], why: str = "") -> Command:
        return self._command(Act(run=run, action=action, args=args, why=why))

    def approve(self, run: str, command: str) -> Command:
        return self._command(Approve(run, command))

    def dismiss(self, run: str, command: str, reason: str = "") -> Command:
        return self._command(Dismiss(run, command, reason))

    def undo(self, run: str, command: str) -> Command:
        """The new command that takes an applied one back."""
        return self._command(Undo(run, command))

    def set_mode(self, run: str, mode: Mode) -> None:
        self._get(SetMode(run, mode), Accepted)

    def mark(self, run: str, text: str) -> None:
        self._get(AddMark(run, text), Accepted)

    def stop(self) -> None:
        """Let the daemon commit everything and end."""
        self._get(StopDaemon(), Accepted)

    def follow(self, run: str | None = None) -> Follower:
        """Subscribe to a run's changes, or with None to the list of runs; live when this returns.

        Take the `view` after this, and drop each `Delta` up to its `seq`.

        Raises:
            Refusal: there is no such run.
            DaemonUnreachable: the daemon does not publish.
        """
        greeting = self.greet()
        topic = RUNS_TOPIC if run is None else self.status(run).run.encode()
        address = publish_address(greeting.publish, self.address)
        socket = connect(self._context, zmq.SUB, address, self._key)
        socket.subscribe(topic)
        if not socket.poll(int(self._timeout * 1_000)):
            socket.close()
            raise DaemonUnreachable(f"the daemon at {self.address} answers, but {address} does not publish")
        return Follower(socket)

    def _command(self, request: Request) -> Command:
        command = self._get(request, Accepted).command
        if command is None:
            raise DaemonError(f"the daemon at {self.address} named no command")
        return command

    def _get(self, request: Request, kind: type[Kind]) -> Kind:
        return self._get_blocks(request, kind)[0]

    def _get_blocks(self, request: Request, kind: type[Kind]) -> tuple[Kind, Blocks]:
        reply, blocks = self.ask(request)
        if not isinstance(reply, kind):
            raise DaemonError(f"the daemon at {self.address} answered with a {type(reply).__name__}")
        return reply, blocks

    def _unreachable(self) -> DaemonUnreachable:
        where = f"no daemon answers at {self.address}"
        if os.environ.get("OPTWATCH_DAEMON_KEY"):
            return DaemonUnreachable(
                f"{where} with the key in $OPTWATCH_DAEMON_KEY: see whether it runs there, and has that key"
            )
        return DaemonUnreachable(
            f"{where}: start one with `optwatch daemon`, or say where it is with $OPTWATCH_DAEMON"
        )


def _series_blocks(series: Series, blocks: Blocks) -> SeriesBlocks:
    try:
        return SeriesBlocks.read(blocks, len(series.columns))
    except WireError as error:
        raise DaemonError(f"the daemon sent {error}") from None


def _tensor_blocks(tensors: Tensors, blocks: Blocks) -> TensorBlocks:
    try:
        return TensorBlocks.read(blocks, len(tensors.tensors), len(tensors.stats), len(tensors.counts))
    except WireError as error:
        raise DaemonError(f"the daemon sent {error}") from None
