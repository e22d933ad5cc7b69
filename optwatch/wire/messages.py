"""Agent ↔ daemon messages.

An agent message is a msgpack header (one of `AgentMessage`) and, for `Batch`, blocks of raw
little-endian numbers (see `frames`). Messages with a `seq` are durable: the agent numbers them from 1
within its session, keeps them until the daemon acknowledges them, and sends them again after a
reconnect. The others describe the present and are simply sent anew.

The daemon takes a session's durable messages in the order of `seq` only: one that it has is dropped, and
so is one that comes too early, which it answers with a `Welcome`. On every `Welcome` the agent sends
again, in order, all that it still holds beyond `acked`. `Beat.oldest` tells the daemon which messages
will never come; they are recorded as a gap and the session goes on behind it. Nothing is taken before
the connection's `Hello`. A `Prepare` may come twice: the agent knows a `vote` it has had and ignores it.
"""

from typing import Annotated, Any, Literal

import msgspec

from optwatch.wire.actions import Command, GlobalStep
from optwatch.wire.findings import Finding
from optwatch.wire.limits import MAX_NAME

ConfigValue = str | int | float | bool | None

STATS = (
    "grad_rms",
    "grad_max",
    "exp_avg_rms",
    "exp_avg_sq_mean",
    "exp_avg_sq_min",
    "exp_avg_sq_max",
    "param_rms",
    "param_max",
    "update_rms",
    "rms_t",
    "cos_grad_exp_avg",
    "eps_share",
)
"""Statistics of one tensor, float32: roots, maxima and ratios, never sums of squares. NaN: not measured.

`exp_avg_*` is the first moment's role and `exp_avg_sq_*` the second's, whatever the optimizer calls
them. `rms_t` = sqrt(mean(g² / max(v̂, ε²))); `eps_share` is the share of elements with sqrt(v̂) < 10 ε.
"""

COUNTS = ("grad_zeros", "grad_nonfinite", "moments_nonfinite")
"""Counts of elements of one tensor, uint64. `moments_nonfinite` is of both moments: a statistic of a moment
that is NaN may also be one that was not measured."""

MOST_SNAPSHOTS = 64

CORE_SCALARS = (
    "loss",
    "grad_norm",
    "step_time",
    "update_norm",
    "param_norm",
    "lr",
)
"""Columns that every agent sends. A column that a step did not measure is not logged at that step.

`lr` is the first param_group's as scheduled. Others: `lr/1` … for further groups, `lr_scale` while one
is in force, `grad_norm_raw` before the user's clipping, `val_loss` and whatever `watch.log` was given.
`step_time` in seconds. With several ranks `arrival`, a rank's own time: the seconds of a step that it spent
outside of backward passes, in which ranks wait for each other, and of forward passes where they wait there
as well (`own_time` in the hello says that it is so); with `attach(comm_hook=True)`
`local_norm`, of its own gradients before they are averaged.
"""


class GroupInfo(msgspec.Struct, frozen=True):
    """One param_group: its plain hyper-parameters and how many tensors and elements it holds."""

    options: dict[str, ConfigValue]
    tensors: int
    numel: int
    twice: int = 0
    """Tensors that it lists more than once."""
    half: bool = False
    """Whether one of them is float16."""


class OptimizerInfo(msgspec.Struct, frozen=True):
    """One optimizer. `digest` covers what has to agree over ranks for a command to make sense."""

    name: str
    kind: str
    groups: tuple[GroupInfo, ...]
    digest: str
    hints: tuple[str, ...] = ()
    """What this optimizer cannot do, and why, a sentence each ("restart: …")."""
    missing: tuple[str, ...] = ()
    """Names of the model's parameters that want a gradient and are in none of the optimizers."""
    loss_may_rise: str = ""
    """Why its loss need not fall while all is well, "" where it has to."""


class Hello(msgspec.Struct, tag="hello", frozen=True, kw_only=True):
    """The first message of a connection, sent again after each reconnect."""

    protocol: int
    session: str
    run: str
    name: str
    incarnation: int
    job: str
    rank: int
    world_size: int
    host: str
    pid: int
    started: float
    optimizers: tuple[OptimizerInfo, ...]
    allow: tuple[str, ...]
    control: str
    """"armed", or why commands cannot be taken."""
    own_time: bool = False
    """Whether the column `arrival` is known to hold no waiting for other ranks."""
    config: dict[str, ConfigValue] = {}
    versions: dict[str, str] = {}


class TensorInfo(msgspec.Struct, frozen=True, gc=False):
    """One parameter. Order is the order of depth. `shape` is the whole tensor's.

    `shard` is its shard_key: the coordinate along each mesh dimension that shards it, () for a whole
    tensor. Ranks with the same name and shard hold replicas of the same elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    shard: tuple[tuple[str, int], ...] = ()
    held: int | None = None
    """Elements that this rank holds, perhaps 0; None: all of them."""


class Schema(msgspec.Struct, tag="schema", frozen=True, kw_only=True, weakref=True):
    """Names for the columns of the batches that carry the same digest."""

    session: str
    optimizer: int
    digest: str
    scalars: tuple[str, ...]
    tensors: tuple[TensorInfo, ...]
    stats: tuple[str, ...] = STATS
    counts: tuple[str, ...] = COUNTS


class Batch(msgspec.Struct, tag="batch", frozen=True, kw_only=True):
    """Consecutive steps of one optimizer. Blocks: see `frames.BatchBlocks`."""

    session: str
    seq: int
    optimizer: int
    schema: str
    steps: int
    sampled: int
    dropped: int = 0
    """Steps lost so far in this session because the queue was full."""
    histograms: int = 0
    """Steps at which the spread of each tensor's gradient was measured: `histograms`."""


class Event(msgspec.Struct, tag="event", frozen=True, kw_only=True):
    """Something that happened at a step: a mark of the user's, a skipped step, a degradation."""

    session: str
    seq: int
    optimizer: int
    step: int
    kind: Literal["mark", "skipped_step", "clip_changed", "degraded", "control", "note"]
    text: str


class Report(msgspec.Struct, tag="report", frozen=True, kw_only=True):
    """What became of a command on this rank.

    pending: voted for, waiting for its step; applied: took effect before the update of `step`;
    aborted: the vote failed, nothing was changed; refused: this rank cannot do it; failed: it raised.
    """

    session: str
    seq: int
    command: str
    vote: str
    state: Literal["pending", "applied", "aborted", "refused", "failed"]
    steps: tuple[int, ...] = ()
    """The global_step of each optimizer, for `applied` the one before whose update it took effect."""
    reason: str = ""
    numbers: dict[str, float] = {}


class Checked(msgspec.Struct, tag="checked", frozen=True, kw_only=True):
    """Checksums of the bits of what this rank holds after a step: parameters and optimizer state.

    One uint64 for each group of tensors; ranks that name the same group hold replicas of it. All ranks
    check at the same steps.
    """

    session: str
    seq: int
    optimizer: int
    step: int
    sums: dict[str, int]
    declared: bool = False
    """Whether the groups are known to be replicas. Else they are taken for that once they have agreed,
    or where most agree."""


class Bye(msgspec.Struct, tag="bye", frozen=True, kw_only=True):
    """The agent detached or its process ends in good order."""

    session: str
    seq: int
    reason: str


class Beat(msgspec.Struct, tag="beat", frozen=True, kw_only=True):
    """Once a second, from the agent's own thread: alive, and where the training thread is."""

    session: str
    steps: tuple[int, ...]
    phase: str
    phase_time: float
    overhead: float
    """Share of the step time that the agent takes, an average over the last steps."""
    sample_every: int
    """Steps between two measurements of per-tensor statistics."""
    queued: int
    dropped: int
    control: str
    oldest: int = 0
    """The lowest `seq` that the agent can still send, or would send next; all below that the daemon
    lacks are lost. 0: not said."""
    reduced: bool = False
    """Whether no per-tensor statistics are sent: see `Assign`."""
    snapshots: Annotated[tuple[GlobalStep, ...], msgspec.Meta(max_length=MOST_SNAPSHOTS)] = ()
    """The steps after which the snapshots were taken that this rank holds."""
    thinned: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    """Per-tensor records and histograms that were let go of so far, since too much waits to be sent: they go
    before any scalar does."""
    sent: int = 0
    """The last `seq` that was sent before this beat: all up to it have come when the beat has, or were lost.
    0: not said."""
    clock: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    """Seconds of a clock that nobody sets, at which the agent made this beat: it tells how long one beat was
    under way beside another. 0: not said."""


class Sums(msgspec.Struct, tag="sums", frozen=True, kw_only=True):
    """Answer to an `Ask` for "sums": the checksums of each tensor at a step of a `Checked`.

    Block: `<u8[names, parts]`, 0 where there is nothing. `groups` names each tensor's group, `parts` what
    is held of a tensor: "parameter", "exp_avg", …
    """

    session: str
    optimizer: int
    step: int
    names: tuple[str, ...]
    groups: tuple[str, ...]
    parts: tuple[str, ...]


class Stack(msgspec.Struct, tag="stack", frozen=True, kw_only=True):
    """Answer to an `Ask` for "stack": where the training thread is, the innermost call last."""

    session: str
    steps: tuple[int, ...]
    phase: str
    phase_time: float
    frames: tuple[str, ...]
    """ "file:line function" each; no source text, no values."""


MOST_NEWS = 64
"""Columns, rows, findings and commands, each, of one `News`."""

Columns = Annotated[
    tuple[Annotated[str, msgspec.Meta(max_length=MAX_NAME)], ...], msgspec.Meta(max_length=MOST_NEWS)
]


class Follow(msgspec.Struct, tag="follow", frozen=True, kw_only=True):
    """Once a second from an agent that wants to be told what the daemon knows of its run: send `News`.

    `after`: the last global_step of which it has a row. `seen`: the number of the last `News` that it has;
    where that is not the last one sent, all findings and commands are told anew.
    """

    session: str
    columns: Columns
    after: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    seen: int


AgentMessage = Follow | Hello | Schema | Batch | Event | Report | Checked | Bye | Beat | Sums | Stack


class Welcome(msgspec.Struct, tag="welcome", frozen=True, kw_only=True):
    """Answer to `Hello`, or to a message that came too early: send all beyond `acked` (again), in order."""

    daemon: str
    session: str
    acked: int


class Ack(msgspec.Struct, tag="ack", frozen=True, kw_only=True):
    """All durable messages up to `acked` are committed to the store."""

    session: str
    acked: int


class Prepare(msgspec.Struct, tag="prepare", frozen=True, kw_only=True):
    """Apply `action` before the update of step `steps[i]` of optimizer i, if all `n` ranks agree.

    `session` must be the receiver's own, else it is dropped. With n = 1 there is no vote: the next
    step applies it. `order` sorts commands that fall on the same step.
    """

    session: str
    command: str
    vote: str
    n: int
    steps: tuple[int, ...]
    order: int
    action: str
    args: dict[str, Any]


class Assign(msgspec.Struct, tag="assign", frozen=True, kw_only=True):
    """What this rank is to send: everything or, `reduced`, no per-tensor statistics, since a replica of the
    same tensors sends them. A rank that was not told sends everything, and so does one that has lost its
    daemon: a message that does not come costs bytes, never data. `Beat.reduced` says what it does."""

    session: str
    reduced: bool


class Farewell(msgspec.Struct, tag="farewell", frozen=True, kw_only=True):
    """The daemon is about to end in good order, and has committed what it took. Nothing more comes."""

    session: str
    reason: str


class Rejected(msgspec.Struct, tag="rejected", frozen=True, kw_only=True):
    """The daemon will not serve this agent; `reason` is shown to the user once."""

    session: str
    reason: str


class Ask(msgspec.Struct, tag="ask", frozen=True, kw_only=True):
    """A question to one agent, which answers once if it can: with `Sums` of a step, or with its `Stack`."""

    session: str
    what: Literal["sums", "stack"]
    optimizer: int = 0
    step: int = 0


class News(msgspec.Struct, tag="news", frozen=True, kw_only=True):
    """Answer to `Follow`, and then whenever a finding or a command is new or has changed.

    Rows are of the merged series of the first optimizer, thinned out to `MOST_NEWS`: at each of `steps` one
    of `values`, a number for each of `columns` or None. Each finding and command is as it stands now.
    """

    session: str
    number: int
    columns: Columns = ()
    steps: Annotated[tuple[int, ...], msgspec.Meta(max_length=MOST_NEWS)] = ()
    values: Annotated[
        tuple[Annotated[tuple[float | None, ...], msgspec.Meta(max_length=MOST_NEWS)], ...],
        msgspec.Meta(max_length=MOST_NEWS),
    ] = ()
    findings: Annotated[tuple[Finding, ...], msgspec.Meta(max_length=MOST_NEWS)] = ()
    commands: Annotated[tuple[Command, ...], msgspec.Meta(max_length=MOST_NEWS)] = ()

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError("rows that do not fit their columns")


DaemonMessage = News | Welcome | Ack | Prepare | Ask | Assign | Farewell | Rejected
