"""The daemon's process: from settings to a served address, and a clean end."""

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy.ma  # noqa: F401  numpy loads it at its first median, when there may be no file left to open
import zmq

from optwatch.daemon.access import Access
from optwatch.daemon.announcement import Announcement
from optwatch.daemon.boards import Boards, Ranks
from optwatch.daemon.errors import StartError
from optwatch.daemon.herald import Herald
from optwatch.daemon.readout import Readout
from optwatch.daemon.refusals import Handshakes
from optwatch.daemon.retention import Limits
from optwatch.daemon.runs import Runs
from optwatch.daemon.server import Server
from optwatch.daemon.sockets import bind, check_exposure, open_socket, publish_address, raise_file_limit
from optwatch.daemon.store import Store
from optwatch.daemon.telemetry import Telemetry
from optwatch.policy.load import DEFAULT, PolicyError, load_rules
from optwatch.policy.rules import Rules
from optwatch.wire.keys import KeyFileError, key_pair
from optwatch.wire.places import (
    DEFAULT_ADDRESS,
    AddressError,
    Connection,
    notify_file,
    parse_address,
    state_dir,
)
from optwatch.wire.requests import Mode

if TYPE_CHECKING:
    from optwatch.daemon.meters import Meters

log = logging.getLogger(__name__)

GARBAGE = 20_000
"""New objects between two looks for garbage: what a thousand ranks tell of is half a million, and is kept."""


@dataclass(frozen=True)
class Settings:
    """What `optwatch daemon` was asked for. None: the default of `places`."""

    listen: str | None = None
    store: Path | None = None
    mode: Mode = "advise"
    policy: Path | None = None
    tensorboard: Path | None = None
    tensorboard_ranks: Ranks = "merged"
    tensorboard_tensors: bool = False
    metrics: tuple[str, int] | None = None
    otlp: str | None = None
    """A collector's URL, "" for the one that the SDK's environment variables name."""
    insecure: bool = False
    idle_exit: float | None = None
    limits: Limits = field(default_factory=Limits)


def serve(settings: Settings, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM, SIGINT or a client's stop; `ready` is called with the address once it does.

    Raises:
        StartError: it cannot start; one sentence for the user.
    """
    address = _address(settings)
    rules = _rules(settings.policy)
    check_exposure(address, insecure=settings.insecure)
    raise_file_limit()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 10)
    wake, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    store = Store(settings.store or state_dir(), notify=lambda: _ring(bell))
    boards: Boards | None = None
    meters: Meters | None = None
    telemetry: Telemetry | None = None
    herald: Herald | None = None
    readout = Readout(lambda: _ring(bell))
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 65_535)
    try:
        access = _access(context, settings)
        router, xpub = (open_socket(context, kind, access) for kind in (zmq.ROUTER, zmq.XPUB))
        handshakes = [Handshakes(context, socket, access.refusals) for socket in (router, xpub)]
        bound = bind(router, address, any_port=settings.listen is None)
        publish = bind(xpub, publish_address(bound), any_port=True)
        if settings.tensorboard is not None:
            boards = Boards(
                settings.tensorboard, store.path, settings.tensorboard_ranks, settings.tensorboard_tensors
            )
        meters = _meters(settings, readout)
        telemetry = Telemetry(settings.otlp, readout) if settings.otlp is not None else None
        herald = Herald(notify_file())
        runs = Runs(store, settings.mode, rules)
        announcement = Announcement(
            Connection(
                address=bound,
                publish=publish,
                key=access.public,
                pid=os.getpid(),
                store=str(store.directory),
            )
        )
        server = Server(
            store,
            runs,
            access,
            handshakes,
            router,
            xpub,
            wake,
            settings.idle_exit,
            [each.tell for each in (boards, herald) if each is not None],
            readout,
            announcement,
            lambda: _reread(settings.policy, runs, herald),
            settings.limits,
        )
        with _signals(server.stop, server.reread), announcement:
            log.info("listening on %s, store %s, mode %s", bound, store.directory, settings.mode)
            if herald.targets:
                log.info("notifications to %s", ", ".join(herald.targets))
            if meters is not None:
                log.info("metrics at %s", meters.address)
            if telemetry is not None:
                log.info("metrics to %s, every %g s", telemetry.address, telemetry.period)
            ready(bound)
            server.serve()
    finally:
        if herald is not None:
            herald.close()
        if telemetry is not None:
            telemetry.close()
        if meters is not None:
            meters.close()
        if boards is not None:
            boards.close()
        store.close()
        context.destroy(linger=300)
        os.close(wake)
        os.close(bell)
    log.info("ended")


def _address(settings: Settings) -> str:
    try:
        return parse_address(settings.listen or DEFAULT_ADDRESS)
    except AddressError as error:
        raise StartError(str(error)) from None


def _access(context: "zmq.Context[zmq.Socket[bytes]]", settings: Settings) -> Access:
    if settings.insecure:
        return Access(context, None, None)
    try:
        return Access(context, key_pair("daemon"), key_pair("user"))
    except KeyFileError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"cannot keep keys in {error.filename}: {error.strerror}") from None


def _meters(settings: Settings, readout: Readout) -> "Meters | None":
    if settings.metrics is None:
        return None
    from optwatch.daemon.meters import Meters  # with it comes an HTTP server

    return Meters(settings.metrics, readout)


def _reread(policy: Path | None, runs: Runs, herald: Herald) -> None:
    """Take the policy's file, and whom to notify, as they are now; a wrong one changes nothing."""
    herald.reread()
    if policy is None:
        log.info("SIGHUP: there is no policy file to read anew")
        return
    try:
        runs.set_rules(load_rules(policy))
    except PolicyError as error:
        log.error("SIGHUP: the policy stays as it was: %s", error)
    else:
        log.info("SIGHUP: the policy %s was read anew", policy)


@contextmanager
def _signals(stop: Callable[[], None], reread: Callable[[], None]) -> Iterator[None]:
    wanted = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reread}
    former = {number: signal.signal(number, lambda *_, do=do: do()) for number, do in wanted.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _rules(policy: Path | None) -> Rules:
    if policy is None:
        return DEFAULT
    try:
        return load_rules(policy)
    except PolicyError as error:
        raise StartError(str(error)) from None


def _ring(bell: int) -> None:
    try:
        os.write(bell, b"!")
    except BlockingIOError:  # it rings already
        return
