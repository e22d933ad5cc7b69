"""Status: a run as it stands, in the words that clients get."""

from optwatch.daemon.run import Run
from optwatch.daemon.sessions import Rank
from optwatch.series import noise
from optwatch.series.timeline import Timeline
from optwatch.wire.requests import RankInfo, RankStack, RunInfo, RunStatus


def run_info(run: Run, now: float) -> RunInfo:
    """A run in a list. `now`: monotonic."""
    lane = run.lanes.get(0)
    return RunInfo(
        run=run.head.run,
        name=run.head.name,
        state=run.state(now),
        step=run.step,
        started=run.head.started,
        world_size=run.head.world_size,
        loss=lane.timeline.last("loss") if lane else run.head.loss,
        rate=run.rate(),
        worst=run.worst(),
    )


def run_status(run: Run, now: float) -> RunStatus:
    """Everything about a loaded run but its history. `now`: monotonic."""
    lane = run.lane(0)
    timeline, in_force = lane.timeline, run.book.in_force
    overheads = [r.session.beat.overhead for r in run.ranks.values() if r.session.beat]
    return RunStatus(
        run=run.head.run,
        name=run.head.name,
        state=run.state(now),
        step=run.step,
        started=run.head.started,
        world_size=run.head.world_size,
        ranks=tuple(_rank_info(run, rank, now) for _, rank in sorted(run.ranks.items())),
        steps_recorded=lane.recorded(),
        gaps=lane.gaps(),
        mode=run.head.mode,
        control=run.control(now),
        loss=timeline.last("loss"),
        lr=timeline.last("lr"),
        lr_scale=in_force.lr_scale,
        clip=in_force.clip if isinstance(in_force.clip, (int, float)) else timeline.now("clip"),
        grad_norm=timeline.last("grad_norm"),
        overhead=max(overheads) if overheads else None,
        rate=run.rate(),
        optimizers=run.head.optimizers,
        config=run.head.config,
        allow=run.head.allow,
        worst=run.worst(),
        noise_scale=_noise_scale(timeline),
        snapshots=run.snapshots,
    )


def _noise_scale(timeline: Timeline) -> float | None:
    if noise.TRACE not in timeline.columns:
        return None
    _, values, logged = timeline.window(None, None, (noise.TRACE, noise.SIGNAL), None)
    there = logged.all(axis=1)
    return noise.noise_scale(values[there, 0], values[there, 1])


def rank_stack(rank: Rank, now: float) -> RankStack:
    """Where a rank's training thread was, as it last said. `now`: monotonic."""
    session, stack = rank.session, rank.session.stack
    silence = max(now - session.heard, 0.0)
    if stack is None:
        return RankStack(rank=rank.rank, age=None, silence=silence)
    return RankStack(
        rank=rank.rank,
        age=max(now - session.stacked, 0.0),
        silence=silence,
        step=stack.steps[0] if stack.steps else 0,
        phase=stack.phase,
        phase_time=stack.phase_time,
        frames=stack.frames,
    )


def _rank_info(run: Run, rank: Rank, now: float) -> RankInfo:
    session, beat = rank.session, rank.session.beat
    checked_step, agrees = run.replicas.checked.get(rank.rank, (None, None))
    return RankInfo(
        rank=rank.rank,
        host=session.hello.host,
        pid=session.hello.pid,
        link=session.link(now),
        step=session.steps[0] if session.steps else 0,
        phase=beat.phase if beat else "",
        overhead=beat.overhead if beat else 0.0,
        sample_every=beat.sample_every if beat else 0,
        dropped=beat.dropped if beat else 0,
        control=session.control,
        phase_time=beat.phase_time if beat else 0.0,
        reduced=beat.reduced if beat else False,
        local_norm=rank.local_norm,
        lateness=run.stragglers.lateness.get(rank.rank),
        checked_step=checked_step,
        agrees=agrees,
        thinned=beat.thinned if beat else 0,
    )
