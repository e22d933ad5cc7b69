"""A feed of recorded values: what the screens show in tests is the same each time."""

from dataclasses import replace

import msgspec
import numpy as np
from textual.message import Message

from optwatch.wire.actions import Command, Outcome
from optwatch.wire.findings import Cause, Finding, Remedy
from optwatch.wire.frames import SeriesBlocks, TensorBlocks
from optwatch.wire.messages import COUNTS, STATS, GroupInfo, OptimizerInfo, TensorInfo
from optwatch.wire.requests import (
    Delta,
    Marker,
    RankInfo,
    Request,
    RunInfo,
    RunStatus,
    Series,
    Tensors,
    View,
)
from optwatch_tui.compared import ComparedRun
from optwatch_tui.feed import LinkChanged, Post, RunChanged, RunsChanged, SpreadChanged
from optwatch_tui.model import Glance, Link, RunModel, Snapshot
from optwatch_tui.spread import Spread
from tests.histograms import counted

NOW = 1_790_000_000.0
ADDRESS = "tcp://127.0.0.1:47017"
LIVE = Link("live", ADDRESS, NOW - 60)
COLUMNS = (
    "loss",
    "grad_norm",
    "step_time",
    "update_norm",
    "param_norm",
    "lr",
    "lr_scale",
    "val_loss",
)


class RecordedFeed:
    """Posts the messages it was given when the app starts, and keeps what it was asked."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.asked: list[Request] = []
        self.watched: list[str | None] = []
        self.compared: list[tuple[str, ...]] = []
        self.looked_into: list[str | None] = []
        self.post: Post = lambda message: None

    def start(self, post: Post) -> None:
        self.post = post
        for message in self.messages:
            post(message)

    def watch(self, run: str | None) -> None:
        self.watched.append(run)

    def compare(self, runs: tuple[str, ...]) -> None:
        self.compared.append(runs)

    def look_into(self, run: str, tensor: str | None) -> None:
        self.looked_into.append(tensor)
        if tensor is not None:
            self.post(SpreadChanged(spread(tensor)))

    def ask(self, request: Request) -> None:
        self.asked.append(request)

    def close(self) -> None:
        pass


def status(step: int = 18_420, world_size: int = 4, **changes: object) -> RunStatus:
    values: dict[str, object] = {
        "run": "7f3a2c10",
        "name": "gpt-small",
        "state": "live",
        "step": step,
        "started": NOW - 7_500,
        "world_size": world_size,
        "ranks": tuple(
            RankInfo(
                rank=rank,
                host=f"node{rank // 4}",
                pid=1000 + rank,
                link="up",
                step=step,
                phase="step",
                overhead=0.006,
                sample_every=10,
                dropped=0,
                control="armed",
            )
            for rank in range(world_size)
        ),
        "steps_recorded": step,
        "gaps": (),
        "mode": "advise",
        "control": "armed",
        "loss": 2.314,
        "lr": 3e-4,
        "lr_scale": 0.5,
        "clip": 1.0,
        "grad_norm": 0.87,
        "overhead": 0.006,
        "rate": 9.83,
        "optimizers": (
            OptimizerInfo("optimizer", "AdamW", (GroupInfo({"lr": 3e-4}, 48, 1_000_000),), "abc"),
        ),
        "config": {},
        "allow": ("restart", "scale_lr", "clip"),
    }
    return RunStatus(**{**values, **changes})  # type: ignore[arg-type]


def ranks(world_size: int, step: int = 18_420) -> tuple[RankInfo, ...]:
    """Ranks that tell everything; 40 is not heard, 17 comes late, 33 differs, 5 was never compared."""
    rng = np.random.default_rng(3)
    late = 0.001 * rng.random(world_size)
    norm = 1 + 0.1 * rng.normal(size=world_size)
    return tuple(
        msgspec.structs.replace(
            rank,
            phase="between steps" if rank.rank % 3 else "step",
            phase_time=0.05 + (25.0 if rank.rank == 40 else 0.0),
            lateness=0.0216 if rank.rank == 17 else float(late[rank.rank]),
            local_norm=float(norm[rank.rank]),
            checked_step=None if rank.rank == 5 else step - 20,
            agrees=None if rank.rank == 5 else rank.rank != 33,
            link="down" if rank.rank == 40 else "up",
            step=step - 120 if rank.rank == 40 else step,
        )
        for rank in status(step, world_size).ranks
    )


def series(first: int, last: int) -> tuple[Series, SeriesBlocks]:
    """A loss that falls, spikes at 70 % and comes back after the rate was halved."""
    rng = np.random.default_rng(7)
    step = np.arange(1, last + 1)
    share = step / last
    noise = rng.normal(size=(last, 4))
    spike = np.where(step > 0.7 * last, np.exp(-(step - 0.7 * last) / (0.03 * last)), 0.0)
    loss = 2.1 + 2.2 * np.exp(-6 * share) + 0.05 * noise[:, 0] + 1.6 * spike
    norm = np.exp(-0.4 - 0.5 * share + 0.25 * noise[:, 1] + 2.6 * spike)
    lr = 3e-4 * np.minimum(share / 0.05, 0.1 + 0.45 * (1 + np.cos(np.pi * share)))
    scale = np.where(step > 0.72 * last, 0.5, 1.0)
    update = 0.08 * np.exp(0.1 * noise[:, 2]) * (lr * scale) / 3e-4
    values = np.stack(
        [
            loss,
            norm,
            0.101 + 0.004 * np.abs(noise[:, 3]),
            update,
            60 + 10 * share,
            lr,
            scale,
            loss + 0.08,
        ],
        axis=1,
    )
    logged = np.ones(values.shape, dtype=np.uint8)
    logged[:, 6] = step > 0.72 * last
    logged[:, 7] = step % max(1, last // 40) == 0
    rows = slice(first - 1, last)
    blocks = SeriesBlocks(step=step[rows].astype(np.int64), values=values[rows], logged=logged[rows])
    return Series(columns=COLUMNS, reduced=False), blocks


def tensors(last: int, layers: int = 12, samples: int = 120) -> tuple[Tensors, TensorBlocks]:
    """A small GPT whose first layers fall silent towards the end."""
    names = ["embed.weight"]
    for layer in range(layers):
        names += [f"h.{layer}.attn.qkv.weight", f"h.{layer}.attn.proj.weight"]
        names += [f"h.{layer}.mlp.fc.weight", f"h.{layer}.mlp.proj.weight"]
    names.append("head.weight")
    infos = tuple(TensorInfo(name, (64, 64), "float32", 0) for name in names)
    rng = np.random.default_rng(11)
    step = np.unique(np.linspace(1, last, samples).astype(np.int64))
    shape = (len(step), len(names))
    depth = np.arange(len(names)) / len(names)
    fade = np.where((depth < 0.2)[None, :], -3.0 * (step[:, None] / last) ** 3, 0.0)
    base = 10 ** (-3 + 0.5 * depth[None, :] + fade + 0.1 * rng.normal(size=shape))
    stats = np.full((*shape, len(STATS)), np.nan, dtype=np.float32)
    for name, values in {
        "grad_rms": base,
        "grad_max": 6 * base,
        "exp_avg_sq_min": 0.01 * base**2,
        "exp_avg_sq_max": 60 * base**2,
        "exp_avg_rms": 0.3 * base,
        "exp_avg_sq_mean": 1.2 * base**2,
        "param_rms": np.full(shape, 0.05),
        "update_rms": 0.05 * base,
        "rms_t": 1.0 + 0.1 * rng.random(shape),
        "eps_share": 0.01 * rng.random(shape),
    }.items():
        stats[:, :, STATS.index(name)] = values
    counts = np.zeros((*shape, len(COUNTS)), dtype=np.uint64)
    return Tensors(tensors=infos, stats=STATS, counts=COUNTS), TensorBlocks(step, stats, counts)


DIVERGENCE = Finding(
    run="7f3a2c10",
    id=3,
    kind="divergence",
    severity="critical",
    step=12_902,
    onset_step=12_894,
    summary="The gradient norm is 12 × its median and the loss lost 31 % of what it had gained.",
    evidence={"grad_norm": 9.94, "median_grad_norm": 0.81, "loss": 3.78, "best_loss": 2.14},
    causes=(
        Cause("lr_too_high", 0.7, "the learning rate is at its peak and update/param is 1.3e-3"),
        Cause("bad_batch", 0.2, "the gradient norm rose within one step"),
    ),
    remedies=(
        Remedy("scale_lr", {"factor": 0.5, "ramp": 50}, "halving the rate won back such runs"),
        Remedy("advice", {}, "lengthen the warm-up"),
    ),
)
FINDINGS = (
    Finding(
        run="7f3a2c10",
        id=1,
        kind="loss_spike",
        severity="warning",
        step=4_120,
        onset_step=4_100,
        resolved_step=4_310,
        summary="The loss was 6 σ over its trend for 20 points.",
    ),
    Finding(
        run="7f3a2c10",
        id=2,
        kind="vanishing_gradient",
        severity="warning",
        step=11_020,
        onset_step=10_800,
        tensor="h.0.mlp.fc.weight",
        summary="Its update/param ratio is 0.004 of the median layer's for 200 steps.",
        evidence={"ratio": 4e-6, "median_ratio": 1e-3},
        causes=(Cause("saturated_activations", 0.6, "the gradient falls 40 × over each of 5 layers"),),
    ),
    DIVERGENCE,
)
COMMANDS = (
    Command(
        id="1",
        run="7f3a2c10",
        action="scale_lr",
        args={"factor": 0.5, "ramp": 50},
        state="judged",
        asked_by="policy",
        why="divergence 3: lr_too_high",
        asked_at=NOW - 600,
        finding=3,
        step=12_910,
        ranks_applied=(0, 1, 2, 3),
        outcome=Outcome("helped", {"loss_change": -0.21}),
    ),
    Command(
        id="2",
        run="7f3a2c10",
        action="restart",
        args={},
        state="proposed",
        asked_by="policy",
        why="the moments still hold the gradients of the divergence",
        asked_at=NOW - 30,
        finding=3,
    ),
)
RUNS = (
    RunInfo(
        run="7f3a2c10",
        name="gpt-small",
        state="live",
        step=18_420,
        started=NOW - 7_500,
        world_size=4,
        loss=2.314,
        rate=9.83,
        worst="critical",
    ),
    RunInfo(
        run="12ab99ee",
        name="digits-mlp",
        state="stale",
        step=740,
        started=NOW - 90_000,
        world_size=1,
        loss=0.43,
        rate=112.0,
    ),
    RunInfo(
        run="a0b1c2d3",
        name="resnet-cifar",
        state="ended",
        step=39_100,
        started=NOW - 400_000,
        world_size=8,
        loss=0.021,
        worst="info",
    ),
)


def model(last: int = 18_420, **changes: object) -> RunModel:
    """The run in full, as a view would bring it."""
    given = {"findings": FINDINGS, "commands": COMMANDS, "world_size": 4, **changes}
    findings, commands = given.pop("findings"), given.pop("commands")
    names, blocks = series(1, last)
    tensor_names, tensor_blocks = given.pop("tensor_view", None) or tensors(last)  # type: ignore[misc]
    view = View(
        seq=10,
        status=status(last, **given),  # type: ignore[arg-type]
        findings=findings,  # type: ignore[arg-type]
        commands=commands,  # type: ignore[arg-type]
        markers=(Marker(6_000, "mark", "curriculum stage 2"),),
        series=names,
        tensors=tensor_names,
    )
    return RunModel(view, blocks, tensor_blocks)


def snapshot(last: int = 18_420, **changes: object) -> Snapshot:
    return model(last, **changes).snapshot()


def live_run(**changes: object) -> RecordedFeed:
    """The link is live, there are three runs and the first one is watched."""
    return RecordedFeed(LinkChanged(LIVE), RunsChanged(RUNS), RunChanged(snapshot(**changes)))


def compared(count: int, last: int = 2_000) -> tuple[ComparedRun, ...]:
    """Runs of the same kind, each with another learning rate, a bit slower and longer than the one before."""
    out = []
    for at in range(count):
        shown = snapshot(last + 100 * at, run=f"{at:08x}", name=f"sweep-{at}", config={"lr": 1e-3 / (at + 1)})
        values = shown.columns.values.copy()
        values[:, :2] *= 1 + 0.15 * at
        values[:, 2] *= 1 + at
        out.append(ComparedRun(shown.status, replace(shown.columns, values=values), shown.findings[:1]))
    return tuple(out)


def spread(tensor: str, last: int = 18_420, histograms: int = 60) -> Spread:
    """Of a normal distribution that shrinks towards the end, with some zeros."""
    rng = np.random.default_rng(13)
    step = np.unique(np.linspace(1, last, histograms).astype(np.int64))
    scale = 10 ** (-3 - 2.5 * (step / last) ** 3)
    counts = [counted(np.where(rng.random(4_096) < 0.03, 0.0, s * rng.normal(size=4_096))) for s in scale]
    return Spread("7f3a2c10", tensor, step, np.array(counts, dtype=np.uint64))


def glances() -> dict[str, Glance]:
    """Of the three runs in the list."""
    falling = tuple(2.0 / (1 + at) for at in range(20))
    return {"7f3a2c10": Glance(falling, 25_000), "12ab99ee": Glance((*falling[::-1], float("nan")), None)}


def delta(seq: int, first: int, last: int, **changes: object) -> tuple[Delta, SeriesBlocks, TensorBlocks]:
    """Rows `first` to `last` of the same run, without tensors."""
    names, blocks = series(first, last)
    nothing = Tensors(tensors=(), stats=(), counts=())
    empty = TensorBlocks(
        np.empty(0, dtype=np.int64),
        np.empty((0, 0, 0), dtype=np.float32),
        np.empty((0, 0, 0), dtype=np.uint64),
    )
    message = Delta(
        run="7f3a2c10",
        seq=seq,
        status=status(last),
        findings=changes.get("findings", ()),  # type: ignore[arg-type]
        commands=changes.get("commands", ()),  # type: ignore[arg-type]
        markers=(),
        series=names,
        tensors=nothing,
    )
    return message, blocks, empty
