"""A peer that speaks the agents' side of the wire over a real socket, without torch."""

import time
import uuid
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
import zmq

from optwatch.wire import limits
from optwatch.wire.frames import AGENT, BatchBlocks, daemon_decoder, pack, unpack
from optwatch.wire.keys import KeyPair, daemon_key, key_pair
from optwatch.wire.messages import (
    Ack,
    AgentMessage,
    Batch,
    Beat,
    Bye,
    DaemonMessage,
    Event,
    Farewell,
    GroupInfo,
    Hello,
    OptimizerInfo,
    Prepare,
    Rejected,
    Report,
    Schema,
    TensorInfo,
    Welcome,
)
from tests.daemons import GUARD

Kind = TypeVar("Kind", Welcome, Ack, Farewell, Prepare, Rejected)

COLUMNS = ("loss", "grad_norm", "step_time", "lr")
OPTIMIZER = OptimizerInfo(
    name="optimizer", kind="Adam", groups=(GroupInfo({"lr": 1e-3}, 2, 110),), digest="same"
)


BEAT = Beat(
    session="",
    steps=(),
    phase="forward",
    phase_time=0.0,
    overhead=0.0,
    sample_every=1,
    queued=0,
    dropped=0,
    control="armed",
)


class AgentPeer:
    """One rank of a run. It keeps what it sent until it is acknowledged, as the protocol asks."""

    def __init__(
        self,
        address: str,
        *,
        run: str | None = None,
        name: str = "toy",
        rank: int = 0,
        world_size: int = 1,
        incarnation: int = 0,
        session: str | None = None,
        columns: Sequence[str] = COLUMNS,
        tensors: int = 2,
        keys: KeyPair | None = None,
        server_key: str | None = None,
        allow: tuple[str, ...] = ("restart", "scale_lr", "clip"),
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        self.session = session or uuid.uuid4().hex
        self.run = run or uuid.uuid4().hex
        self.seq = 0
        self.acked = 0
        self.sent_bytes = 0
        self.step = 0
        self.held: dict[int, list[bytes | memoryview]] = {}
        self.prepares: list[Prepare] = []
        self.messages: list[DaemonMessage] = []
        self.schema = Schema(
            session=self.session,
            optimizer=0,
            digest=f"{len(columns)}-{tensors}",
            scalars=tuple(columns),
            tensors=tuple(TensorInfo(f"layer.{i}.weight", (10, i + 1), "float32", 0) for i in range(tensors)),
        )
        self.hello = Hello(
            protocol=limits.PROTOCOL,
            session=self.session,
            run=self.run,
            name=name,
            incarnation=incarnation,
            job="",
            rank=rank,
            world_size=world_size,
            host="here",
            pid=1,
            started=time.time(),
            optimizers=(OPTIMIZER,),
            allow=allow,
            control="armed",
        )
        self._own = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = context or zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 500)
        key = daemon_key(address) if server_key is None else server_key
        if key:
            pair = keys or key_pair("user")
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, key.encode())
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
            self._socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        self._socket.connect(address)

    def greet(self) -> Welcome:
        """Say hello and wait for the welcome, then send the schema."""
        self.send(self.hello)
        welcome = self.wait_for(Welcome)
        self.send(self.schema)
        return welcome

    def send(self, message: AgentMessage, blocks: Sequence[np.ndarray] = ()) -> None:
        self.send_raw([AGENT, *pack(message, blocks)])

    def send_raw(self, parts: Sequence[bytes | memoryview]) -> None:
        self.sent_bytes += sum(memoryview(part).nbytes for part in parts)
        self._socket.send_multipart(parts)

    def durable(self, message: AgentMessage, blocks: Sequence[np.ndarray] = ()) -> None:
        """Send a message that has a number, and hold it until it is acknowledged."""
        self.held[self.seq] = [AGENT, *pack(message, blocks)]
        self.send_raw(self.held[self.seq])

    def batch(self, values: np.ndarray, *, first: int | None = None, sampled: bool = False) -> BatchBlocks:
        """Send values [n, columns] as the next n steps, with a per-tensor record at the last of them."""
        n = len(values)
        first = self.step + 1 if first is None else first
        self.step = first + n - 1
        step = np.arange(first, first + n, dtype=np.int64)
        tensors = len(self.schema.tensors)
        k = int(sampled)
        blocks = BatchBlocks(
            step=step,
            wall=1e9 + step * 0.01,
            scalars=np.ascontiguousarray(values, dtype=np.float64),
            logged=np.ones(values.shape, dtype=np.uint8),
            sample_step=step[n - k :],
            stats=np.full((k, tensors, len(self.schema.stats)), float(first), dtype=np.float32),
            counts=np.zeros((k, tensors, len(self.schema.counts)), dtype=np.uint64),
        )
        self.seq += 1
        header = Batch(
            session=self.session, seq=self.seq, optimizer=0, schema=self.schema.digest, steps=n, sampled=k
        )
        self.durable(header, blocks.blocks())
        return blocks

    def event(self, step: int, text: str) -> None:
        self.seq += 1
        self.durable(
            Event(session=self.session, seq=self.seq, optimizer=0, step=step, kind="mark", text=text)
        )

    def report(self, prepare: Prepare, state: str, step: int = 0, reason: str = "") -> None:
        self.seq += 1
        self.durable(
            Report(
                session=self.session,
                seq=self.seq,
                command=prepare.command,
                vote=prepare.vote,
                state=state,  # type: ignore[arg-type]
                steps=(step,) if state == "applied" else (),
                reason=reason,
            )
        )

    def bye(self) -> None:
        self.seq += 1
        self.durable(Bye(session=self.session, seq=self.seq, reason="done"))

    def beat(
        self,
        step: int | None = None,
        oldest: int = 0,
        control: str = "armed",
        reduced: bool = False,
        queued: int | None = None,
        sent: int = 0,
    ) -> None:
        self.send(
            msgspec.structs.replace(
                BEAT,
                session=self.session,
                steps=(self.step if step is None else step,),
                overhead=0.005,
                sample_every=10,
                queued=len(self.held) if queued is None else queued,
                control=control,
                oldest=oldest,
                reduced=reduced,
                sent=sent,
            )
        )

    def receive(self, timeout: float = GUARD) -> DaemonMessage | None:
        """The next message of the daemon, None after `timeout` seconds."""
        if not self._socket.poll(int(timeout * 1000)):
            return None
        message, _ = unpack(self._socket.recv_multipart(), daemon_decoder)
        self.messages.append(message)
        if isinstance(message, Ack | Welcome):
            self.acked = max(self.acked, message.acked)
            self.held = {seq: parts for seq, parts in self.held.items() if seq > message.acked}
        if isinstance(message, Prepare):
            self.prepares.append(message)
        return message

    def wait_for(self, kind: type[Kind]) -> Kind:
        end = time.monotonic() + GUARD
        while (left := end - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")

    def wait_acked(self, seq: int | None = None) -> None:
        """Wait until all up to `seq` (None: the last) is in the store."""
        wanted = self.seq if seq is None else seq
        end = time.monotonic() + GUARD
        while self.acked < wanted:
            assert time.monotonic() < end, f"acknowledged {self.acked} of {wanted}"
            self.receive(0.1)

    def resend(self) -> None:
        """Send again all that was not acknowledged, in order."""
        for seq in sorted(self.held):
            self.send_raw(self.held[seq])

    def close(self, linger: int = 500) -> None:
        self._socket.close(linger)
        if self._own:
            self._context.destroy(linger=linger)


def values(n: int, columns: int = len(COLUMNS), start: float = 0.0) -> np.ndarray:
    """Numbers that tell their place, and that no detector finds anything in: values [n, columns]."""
    return 1.0 + 1e-9 * (1e3 * start + np.arange(n * columns, dtype=np.float64).reshape(n, columns))
