"""Ingest: what agents send, taken in order, stored, acknowledged.

Whatever arrives, nothing here raises: what is not as the protocol says is counted and dropped.
"""

import logging
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from optwatch.daemon.attempts import incarnation_of
from optwatch.daemon.refusals import Refusals
from optwatch.daemon.run import Run
from optwatch.daemon.runs import Runs
from optwatch.daemon.schemas import taken_in
from optwatch.daemon.sessions import Session
from optwatch.daemon.store import Store
from optwatch.wire import limits
from optwatch.wire.frames import BatchBlocks, Buffer, WireError, agent_decoder, block, check_schema, unpack
from optwatch.wire.guests import Role
from optwatch.wire.messages import (
    Ack,
    Ask,
    Batch,
    Beat,
    Bye,
    Checked,
    DaemonMessage,
    Event,
    Farewell,
    Follow,
    Hello,
    News,
    Prepare,
    Rejected,
    Report,
    Schema,
    Stack,
    Sums,
    Welcome,
)

log = logging.getLogger(__name__)

MAX_BACKLOG = 256 << 20
"""Bytes waiting for the disk beyond which durable messages are left with the agents."""
NUDGE = 0.5
"""Seconds between two requests to send the same again."""
FORGET = 3_600.0
"""Seconds of silence after which a session is no longer kept in memory."""
MAX_SEQ = 1 << 62

MAX_GROUPS = 256
"""Groups of tensors in one check."""
MAX_FRAMES = 256

Durable = Batch | Event | Report | Checked | Bye
Send = Callable[[bytes, DaemonMessage], bool]
"""Send to a routing id; whether the socket took it."""


class Ingest:
    """Owns the sessions of all agents."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        send: Send,
        prepare: Callable[[str, Prepare | Ask | News], None],
        daemon: str,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self.counts: Counter[str] = Counter()
        """Messages that were dropped, by reason."""
        self.sessions: dict[str, Session] = {}
        self._store = store
        self._runs = runs
        self._send = send
        self._prepare = prepare
        self._daemon = daemon
        self._taken: list[tuple[Session, int]] = []
        self._schemas: weakref.WeakValueDictionary[str, Schema] = weakref.WeakValueDictionary()
        """By the store's name for them: replicas share one."""
        self._unsettled: dict[str, Session] = {}

    def take(self, identity: bytes, user: str, role: Role, parts: Sequence[Buffer], now: float) -> None:
        """Take one message of an agent."""
        if role == "viewer":
            self.counts["a viewer's key"] += 1
            self._refusals.note(user, "a viewer's key may not send what an agent does")
            return
        try:
            message, blocks = unpack(parts, agent_decoder)
            if isinstance(message, Hello):
                self._hello(message, identity, user, now)
                return
            session = self.sessions.get(message.session)
            if session is None or session.user != user or not session.identity:
                self.counts["no hello"] += 1
                if session is not None and session.user != user:
                    self._refusals.note(user, f"it speaks for a session of {session.user}")
                return
            session.identity = identity
            session.heard = now
            if isinstance(message, Schema):
                self._schema(session, message)
            elif isinstance(message, Beat):
                self._beat(session, message, now)
            elif isinstance(message, Follow):
                self._run(session).take_follow(session, message)
            elif isinstance(message, Sums):
                self._run(session).take_sums(session, message, _sums(message, blocks))
            elif isinstance(message, Stack):
                _check_stack(message)
                self._run(session).take_stack(session, message, now)
            else:
                self._durable(session, message, blocks, now)
        except WireError as error:
            self.counts["malformed"] += 1
            self._refusals.note(f"a message of {user}", f"it is not as the protocol says: {error}")

    def submitted(self, ticket: int) -> None:
        """All that was taken so far goes to the store under this ticket."""
        for session, seq in self._taken:
            session.unsettled.append((ticket, seq))
            self._unsettled[session.hello.session] = session
        self._taken.clear()

    def acknowledge(self) -> None:
        """Tell the agents what the store has now."""
        committed = self._store.committed
        for name, session in list(self._unsettled.items()):
            if session.settle(committed):
                self._send(session.identity, Ack(session=name, acked=session.acked))
            if not session.unsettled:
                del self._unsettled[name]

    def describe(self) -> None:
        """Put the sessions' positions into the unit that is about to be submitted."""
        latest = {session.hello.session: seq for session, seq in self._taken}
        for name, seq in latest.items():
            self._store.acknowledge(name, seq)

    def part(self, reason: str) -> int:
        """Say goodbye to the agents that are here; how many are still there to hear it."""
        here = [(name, each) for name, each in self.sessions.items() if each.identity and not each.left]
        return sum(self._send(each.identity, Farewell(session=name, reason=reason)) for name, each in here)

    def forget(self, now: float) -> None:
        """Let go of the sessions that are over; one that comes back all the same is read from the store."""
        for name, session in list(self.sessions.items()):
            if now - session.heard > FORGET and not session.unsettled and session.acked == session.received:
                del self.sessions[name]

    # --- one kind of message each ---------------------------------------------------------------------

    def _hello(self, hello: Hello, identity: bytes, user: str, now: float) -> None:
        if hello.protocol != limits.PROTOCOL:
            self._reject(
                hello,
                identity,
                f"the agent speaks protocol {hello.protocol} and this daemon "
                f"{limits.PROTOCOL}: run the same version of optwatch on both sides",
            )
            return
        if problem := _problem(hello):
            raise WireError(problem)
        session = self.sessions.get(hello.session) or self._restore(hello, user)
        if session.user != user or session.hello.run != hello.run or session.hello.rank != hello.rank:
            self.counts["a session of somebody else"] += 1
            whose = session.user if session.user != user else "another run or rank"
            self._refusals.note(user, f"it speaks for a session of {whose}")
            return
        hello = msgspec.structs.replace(hello, incarnation=session.hello.incarnation)
        session.hello, session.identity, session.heard = hello, identity, now
        session.control = hello.control
        session.left = False
        self.sessions[hello.session] = session
        run = self._runs.for_agent(hello)
        run.greet(session)
        run.resend(session, now, self._prepare)
        self._store.save_session(hello, session.received, session.left)
        self._send(identity, Welcome(daemon=self._daemon, session=hello.session, acked=session.acked))
        session.nudged, session.nudged_at = now, session.received

    def _restore(self, hello: Hello, user: str) -> Session:
        row = self._store.reader.execute(
            "SELECT acked, hello FROM session WHERE session = ? AND run = ?", (hello.session, hello.run)
        ).fetchone()
        if row is not None:
            acked, incarnation = row[0], msgspec.msgpack.decode(row[1], type=Hello).incarnation
        else:
            acked, incarnation = 0, self._incarnation(hello)
        hello = msgspec.structs.replace(hello, incarnation=incarnation)
        return Session(hello=hello, user=user, received=acked, acked=acked)

    def _incarnation(self, hello: Hello) -> int:
        """The incarnation of a process that is heard of for the first time."""
        run = self._runs.by_id.get(hello.run)
        if run is None:
            return hello.incarnation
        if (rank := run.ranks.get(hello.rank)) is not None:
            return incarnation_of(hello, run.head, rank.session.hello)
        rows = self._store.reader.execute(
            "SELECT hello FROM session WHERE run = ? AND rank = ?", (hello.run, hello.rank)
        )
        known = [msgspec.msgpack.decode(data, type=Hello) for (data,) in rows]
        return incarnation_of(hello, run.head, max(known, key=lambda each: each.started, default=None))

    def _schema(self, session: Session, schema: Schema) -> None:
        check_schema(schema)
        if not 0 <= schema.optimizer < max(len(session.hello.optimizers), 1):
            raise WireError(f"a schema of optimizer {schema.optimizer}")
        key = schema.optimizer, schema.digest
        schema = taken_in(schema)
        schema = self._schemas.setdefault(schema.digest, schema)
        if session.schemas.get(key) is not schema:
            if len(session.schemas) >= 256:
                session.schemas.pop(next(iter(session.schemas)))
            session.schemas[key] = schema
            self._store.save_schema(session.hello.run, schema)
            self._run(session).take_schema(session, schema)

    def _beat(self, session: Session, beat: Beat, now: float) -> None:
        if max(beat.oldest, beat.sent) > MAX_SEQ or not all(
            0 <= step <= limits.MAX_STEP for step in beat.steps
        ):
            raise WireError("a beat with a number out of range")
        if beat.steps and len(beat.steps) != max(len(session.hello.optimizers), 1):
            raise WireError(f"a beat of {len(beat.steps)} optimizers")
        session.take_beat(beat, now)
        if lost := session.give_up_before(beat.oldest):
            log.warning("%d messages of %s were lost", lost, _name(session))
            self._taken.append((session, session.received))
            self._nudge(session, now)
        elif beat.queued and not session.unsettled:
            self._look_after(session, beat, now)
        session.received_at_beat = session.received
        self._run(session).touched = True

    def _look_after(self, session: Session, beat: Beat, now: float) -> None:
        """See whether an agent waits for something that was lost. If it sent again without need, a daemon
        that is behind would never catch up."""
        lost = beat.sent > session.received or (
            not beat.sent and session.received == session.received_at_beat
        )
        if lost:
            self._nudge(session, now)
        elif 0 < beat.oldest <= session.acked:  # it has not heard that all this is in the store
            self._send(session.identity, Ack(session=session.hello.session, acked=session.acked))

    def _durable(self, session: Session, message: Durable, blocks: Sequence[Buffer], now: float) -> None:
        expected = session.expects(message.seq)
        if message.seq > MAX_SEQ:
            raise WireError("a message with a number out of range")
        if expected == "had":
            self.counts["had before"] += 1
            if isinstance(message, Bye):  # the hello before it had opened the session anew
                self._run(session).leave(session)
            return
        if expected == "early" or self._store.backlog > MAX_BACKLOG:
            self.counts["too early" if expected == "early" else "disk behind"] += 1
            self._nudge(session, now)
            return
        run = self._run(session)
        if isinstance(message, Batch):
            schema = session.schemas.get((message.optimizer, message.schema))
            if schema is None:
                self.counts["unknown schema"] += 1
                self._nudge(session, now)
                return
            try:
                parsed = BatchBlocks.read(blocks, message, schema)
                _check_steps(parsed)
            except WireError:
                self._accept(session, message.seq)  # it would be as wrong if it came again
                session.lost += 1
                raise
            run.take_batch(session, schema, parsed, now)
            if len(parsed.step):
                session.advance(message.optimizer, int(parsed.step[-1]), now)
        elif isinstance(message, Event):
            if 0 <= message.step <= limits.MAX_STEP:
                run.take_event(message)
        elif isinstance(message, Report):
            run.take_report(session, message)
        elif isinstance(message, Checked):
            if problem := _wrong_check(message):
                self._accept(session, message.seq)
                raise WireError(problem)
            run.take_checked(session, message, now)
        else:
            run.leave(session)
            self._store.save_session(session.hello, message.seq, True)
        self._accept(session, message.seq)

    def _accept(self, session: Session, seq: int) -> None:
        session.received = seq
        self._taken.append((session, seq))

    def _nudge(self, session: Session, now: float) -> None:
        """Ask for everything beyond what the store has: once for each loss, and then now and then."""
        again = session.nudged_at == session.received and now - session.nudged < NUDGE
        if not again and self._store.backlog <= MAX_BACKLOG:
            session.nudged, session.nudged_at = now, session.received
            self._send(
                session.identity,
                Welcome(daemon=self._daemon, session=session.hello.session, acked=session.acked),
            )

    def _reject(self, hello: Hello, identity: bytes, reason: str) -> None:
        log.warning("rejected %s: %s", hello.name, reason)
        self._send(identity, Rejected(session=hello.session, reason=reason))

    def _run(self, session: Session) -> Run:
        run = self._runs.by_id[session.hello.run]
        if not run.loaded:  # it was silent for so long that its series was let go of
            run = self._runs.for_agent(session.hello)
            run.greet(session)
        return run


def _problem(hello: Hello) -> str:
    texts = (hello.session, hello.run, hello.name, hello.job, hello.host)
    if not hello.session or not hello.run or any(len(text) > limits.MAX_NAME for text in texts):
        return "a hello with a name that is empty or too long"
    if not (0 <= hello.rank < hello.world_size <= 1 << 20 and 0 <= hello.incarnation < 1 << 31):
        return f"a hello of rank {hello.rank} of {hello.world_size}"
    if not math.isfinite(hello.started) or hello.started > time.time() + 366 * 86_400:
        return "a hello from no real time"
    if len(hello.optimizers) > limits.MAX_OPTIMIZERS:
        return f"a hello with {len(hello.optimizers)} optimizers"
    return ""


def _wrong_check(check: Checked) -> str:
    if not 0 <= check.step <= limits.MAX_STEP or not 0 <= check.optimizer < limits.MAX_OPTIMIZERS:
        return f"checksums of step {check.step} of optimizer {check.optimizer}"
    if len(check.sums) > MAX_GROUPS or any(len(name) > limits.MAX_NAME for name in check.sums):
        return "checksums over the size limit"
    return "" if all(0 <= value < 1 << 64 for value in check.sums.values()) else "checksums out of range"


def _sums(sums: Sums, blocks: Sequence[Buffer]) -> npt.NDArray[np.uint64]:
    rows, parts = len(sums.names), len(sums.parts)
    if rows > limits.MAX_TENSORS or parts > limits.MAX_STATS or len(sums.groups) != rows or len(blocks) != 1:
        raise WireError("checksums of tensors over the size limit")
    if any(len(name) > limits.MAX_NAME for name in (*sums.names, *sums.groups, *sums.parts)):
        raise WireError("a name over the size limit")
    return block(blocks[0], "<u8", (rows, parts))


def _check_stack(stack: Stack) -> None:
    if len(stack.frames) > MAX_FRAMES or any(len(frame) > limits.MAX_TEXT for frame in stack.frames):
        raise WireError("a stack over the size limit")


def _check_steps(blocks: BatchBlocks) -> None:
    for step in (blocks.step, blocks.sample_step, blocks.histogram_step):
        if not len(step):
            continue
        falls = len(step) > 1 and (step[1:] <= step[:-1]).any()
        if falls or step[0] < 0 or step[-1] > limits.MAX_STEP:
            raise WireError("steps that do not increase")


def _name(session: Session) -> str:
    return f"{session.hello.name} rank {session.hello.rank}"
