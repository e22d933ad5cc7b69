"""Client ↔ daemon messages: what the TUI, the CLI and exporters ask and are told.

A client asks on its DEALER socket: `[request number (8 bytes), header]`, and is answered with the same
number, a `Reply` header and blocks. Changes come on the SUB socket, a topic per run, numbered without
gaps: on a gap the client asks for the `View` again. To begin, subscribe, wait for the first publication
(there is one at once), then ask for the `View` and drop each `Delta` up to its `seq`.
"""

from typing import Any, Literal

import msgspec

from optwatch.wire.actions import Command
from optwatch.wire.findings import Finding
from optwatch.wire.messages import ConfigValue, OptimizerInfo, TensorInfo

Mode = Literal["observe", "advise", "auto"]
RunState = Literal["live", "stale", "ended"]


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a list."""

    run: str
    name: str
    state: RunState
    step: int
    started: float
    world_size: int
    loss: float | None = None
    rate: float | None = None
    """Steps per second, lately."""
    worst: str | None = None
    """The highest severity among its open findings."""


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a run, as last heard."""

    rank: int
    host: str
    pid: int
    link: Literal["up", "suspect", "down", "left"]
    step: int
    phase: str
    overhead: float
    sample_every: int
    dropped: int
    control: str
    phase_time: float = 0.0
    """Seconds in `phase`, when last heard."""
    reduced: bool = False
    """Whether it leaves the statistics of tensors to a replica of the same tensors."""
    lateness: float | None = None
    """Seconds by which it comes to the backward pass, in which ranks wait for each other, after the earliest
    rank, the median of the last steps; None where the ranks hold no replicas."""
    local_norm: float | None = None
    """Norm of its own gradients before they are reduced, at the last step that told it."""
    checked_step: int | None = None
    """The step at which its replica was last compared with the others, None before."""
    agrees: bool | None = None
    """Whether the replica was then bit for bit that of the others; None where nothing could be compared."""
    thinned: int = 0
    """Per-tensor records that its queue had no room for: they go before any scalar does."""


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run but its history."""

    run: str
    name: str
    state: RunState
    step: int
    started: float
    world_size: int
    ranks: tuple[RankInfo, ...]
    steps_recorded: int
    gaps: tuple[tuple[int, int], ...]
    """Step ranges, both ends included, whose scalars were lost."""
    mode: Mode
    control: str
    """"armed", or why commands cannot be applied now."""
    loss: float | None
    lr: float | None
    lr_scale: float
    clip: float | None
    """Max norm that the agents clip to by command, None when they don't."""
    grad_norm: float | None
    overhead: float | None
    rate: float | None
    optimizers: tuple[OptimizerInfo, ...]
    config: dict[str, ConfigValue]
    allow: tuple[str, ...]
    worst: str | None = None
    noise_scale: float | None = None
    """The gradient noise scale over the last 200 measurements, in batches of all ranks; None where the ranks
    do not measure their own gradients."""
    snapshots: tuple[int, ...] = ()
    """The steps of the snapshots that every rank holds, the oldest first."""


class Marker(msgspec.Struct, frozen=True):
    """A mark of the user's, or an event of an agent's, on the time axis."""

    step: int
    kind: str
    text: str


# --- requests -----------------------------------------------------------------------------------------


class Greet(msgspec.Struct, tag="greet", frozen=True):
    """Who are you, and where do you publish?"""

    protocol: int


class ListRuns(msgspec.Struct, tag="runs", frozen=True):
    """All runs, the newest first."""


class GetStatus(msgspec.Struct, tag="status", frozen=True):
    """`run`, here and below: a run's id, an unambiguous beginning of it, or a name (its newest run)."""

    run: str


class GetFindings(msgspec.Struct, tag="findings", frozen=True):
    run: str


class GetCommands(msgspec.Struct, tag="commands", frozen=True):
    run: str


class GetStacks(msgspec.Struct, tag="stacks", frozen=True):
    """Where the training threads are. With `ask` the ranks are asked anew; the answers come a moment later.

    A viewer may ask: what comes are files, lines and names of functions, no source text and no values.
    """

    run: str
    rank: int | None = None
    """None: all."""
    ask: bool = True


class GetView(msgspec.Struct, tag="view", frozen=True):
    """Everything a screen needs to begin: status, findings, commands, markers, columns, tensors."""

    run: str
    points: int = 2_000


class GetSeries(msgspec.Struct, tag="series", frozen=True, kw_only=True):
    """Columns between two steps (None: open), whole, or reduced to `points` buckets of min and max.

    A whole series comes a page at a time, the first rows of the range: ask again from the last step + 1
    until a page is empty.
    """

    run: str
    optimizer: int = 0
    rank: int | None = None
    """One rank's own numbers; None: merged over ranks."""
    columns: tuple[str, ...] = ()
    """Empty: all."""
    first: int | None = None
    last: int | None = None
    points: int | None = None


class GetTensors(msgspec.Struct, tag="tensors", frozen=True, kw_only=True):
    """Per-tensor statistics between two steps, at most the last `limit` samples."""

    run: str
    optimizer: int = 0
    first: int | None = None
    last: int | None = None
    limit: int = 256


class GetHistograms(msgspec.Struct, tag="histograms", frozen=True, kw_only=True):
    """How the gradient of one tensor was spread, or that of all (None), at the last `limit` steps of a range
    at which it was measured."""

    run: str
    tensor: str | None = None
    optimizer: int = 0
    first: int | None = None
    last: int | None = None
    limit: int = 64


class Act(msgspec.Struct, tag="act", frozen=True, kw_only=True):
    """Command the agents of a run by hand."""

    run: str
    action: str
    args: dict[str, Any]
    why: str = ""


class Approve(msgspec.Struct, tag="approve", frozen=True):
    """Let a proposed command go ahead."""

    run: str
    command: str


class Dismiss(msgspec.Struct, tag="dismiss", frozen=True):
    run: str
    command: str
    reason: str = ""


class Undo(msgspec.Struct, tag="undo", frozen=True):
    """Take an applied command back, where it can be."""

    run: str
    command: str


class SetMode(msgspec.Struct, tag="mode", frozen=True):
    run: str
    mode: Mode


class AddMark(msgspec.Struct, tag="mark", frozen=True):
    run: str
    text: str


class StopDaemon(msgspec.Struct, tag="stop", frozen=True):
    """Commit everything and end."""


Request = (
    Greet
    | ListRuns
    | GetStatus
    | GetFindings
    | GetCommands
    | GetStacks
    | GetView
    | GetSeries
    | GetTensors
    | GetHistograms
    | Act
    | Approve
    | Dismiss
    | Undo
    | SetMode
    | AddMark
    | StopDaemon
)


# --- replies ------------------------------------------------------------------------------------------


class Greeting(msgspec.Struct, tag="greeting", frozen=True, kw_only=True):
    protocol: int
    version: str
    daemon: str
    publish: str
    """Address of the XPUB socket."""
    pid: int
    store: str
    mode: Mode
    role: str
    """What this client may do: viewer or operator."""
    trouble: str = ""
    """Why nothing is recorded or commanded now, such as a full disk."""
    time: float = 0.0
    """The daemon's wall clock, unix seconds."""


class Runs(msgspec.Struct, tag="runs", frozen=True):
    runs: tuple[RunInfo, ...]


class Status(msgspec.Struct, tag="status", frozen=True):
    status: RunStatus


class Findings(msgspec.Struct, tag="findings", frozen=True):
    findings: tuple[Finding, ...]


class Commands(msgspec.Struct, tag="commands", frozen=True):
    commands: tuple[Command, ...]


class RankStack(msgspec.Struct, frozen=True, kw_only=True):
    """Where one rank's training thread was, as it last said."""

    rank: int
    age: float | None
    """Seconds since it answered, None where it never did."""
    silence: float
    """Seconds since anything was heard of it."""
    step: int = 0
    phase: str = ""
    phase_time: float = 0.0
    frames: tuple[str, ...] = ()
    """ "file:line function" each, the innermost call last."""


class Stacks(msgspec.Struct, tag="stacks_of", frozen=True):
    stacks: tuple[RankStack, ...]


class Series(msgspec.Struct, tag="series", frozen=True, kw_only=True):
    """Blocks: `step <i8[n]`, `values <f8[n, columns]`, `logged |u1[n, columns]` (`frames.SeriesBlocks`).

    When reduced, each bucket gives two rows: its minimum and its maximum, at the same step.
    """

    columns: tuple[str, ...]
    reduced: bool


class Tensors(msgspec.Struct, tag="tensors", frozen=True, kw_only=True):
    """Blocks: `step <i8[k]`, `stats <f4[k, T, S]`, `counts <u8[k, T, C]` (`frames.TensorBlocks`)."""

    tensors: tuple[TensorInfo, ...]
    stats: tuple[str, ...]
    counts: tuple[str, ...]


class Histograms(msgspec.Struct, tag="histograms_of", frozen=True):
    """Blocks: `step <i8[h]`, `counts <u8[h, T, WIDTH]` (`frames.HistogramBlocks`)."""

    tensors: tuple[TensorInfo, ...]


class View(msgspec.Struct, tag="view", frozen=True, kw_only=True):
    """Blocks: a `Series`' three, then a `Tensors`' three. `seq`: the last `Delta` that is in it."""

    seq: int
    status: RunStatus
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    markers: tuple[Marker, ...]
    series: Series
    tensors: Tensors


class Accepted(msgspec.Struct, tag="accepted", frozen=True):
    """Done, or for `Act`, `Approve` and `Undo`: the command as it stands now."""

    command: Command | None = None


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """`code`: unknown_run, bad_request, forbidden, unavailable. `reason`: a sentence for the user."""

    code: str
    reason: str


Reply = (
    Greeting
    | Runs
    | Status
    | Findings
    | Commands
    | Stacks
    | Series
    | Tensors
    | Histograms
    | View
    | Accepted
    | Refused
)


class Delta(msgspec.Struct, tag="delta", frozen=True, kw_only=True):
    """What changed in a run since the last `Delta`, at most 4 times a second.

    Blocks: as for `View`, with the new rows only. Findings and commands: those that are new or changed,
    whole, to be replaced by id.
    """

    run: str
    seq: int
    status: RunStatus
    findings: tuple[Finding, ...]
    commands: tuple[Command, ...]
    markers: tuple[Marker, ...]
    series: Series
    tensors: Tensors


class RunList(msgspec.Struct, tag="run_list", frozen=True):
    """The list of runs, on the topic `runs`, once a second while anything changes."""

    seq: int
    runs: tuple[RunInfo, ...]


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """The daemon is about to end in good order: the last word on every topic that somebody follows."""

    reason: str


Publication = Delta | RunList | Ended
