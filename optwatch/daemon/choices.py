"""Choices: what a command means for all ranks of a run, where it says "auto" or "last-good" of them."""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from optwatch.daemon.entries import CommandError
from optwatch.daemon.sessions import Rank
from optwatch.series.timeline import Timeline
from optwatch.wire.actions import ACTIONS, AUTO_LEAST, AUTO_OVER, usual_norm
from optwatch.wire.findings import Finding

CLEAR = 50
"""Steps before an onset by which a snapshot is held good: trouble begins before it is seen, but for a value
that is not finite."""
LAST_GOOD = "last-good"


def resolve(
    action: str,
    args: dict[str, Any],
    *,
    snapshots: Sequence[int],
    alarms: Collection[Finding],
    timeline: Timeline,
    optimizers: int,
    world_size: int,
) -> dict[str, Any]:
    """The arguments of a command as all ranks are to have them: "auto" becomes one number for all,
    "last-good" one step, and noise gets its seed.

    `snapshots`: the steps of those that all ranks hold; `alarms`: those that are open; `timeline`: the first
    optimizer's, of so many `optimizers`.

    Raises:
        CommandError: there is none.
    """
    if action == "rollback" and args.get("to_step", LAST_GOOD) == LAST_GOOD:
        return {**args, "to_step": last_good(snapshots, alarms)}
    if action == "perturb" and not args.get("off") and args.get("seed") is None:
        return {**args, "seed": secrets.randbits(63)}
    if action != "clip" or args.get("max_norm") != "auto" or world_size == 1:
        return args
    if optimizers > 1:
        raise CommandError(
            "bad_request",
            "clip auto has no one number for several optimizers: give it a --max-norm",
        )
    points = timeline.newest(("grad_norm_raw", "grad_norm"), AUTO_OVER)
    norms = [norm for norm in points if norm > 0 and math.isfinite(norm)]
    if len(norms) < AUTO_LEAST:
        raise CommandError(
            "unavailable",
            f"clip auto needs {AUTO_LEAST} measured gradient norms, there are {len(norms)} yet",
        )
    return {**args, "max_norm": usual_norm(norms), "adapt": True}


def held_by_all(ranks: Mapping[int, Rank], world_size: int) -> tuple[int, ...]:
    """The steps of the snapshots that every rank holds, the oldest first."""
    beats = [rank.session.beat for rank in ranks.values()]
    if not beats or len(beats) < world_size:
        return ()
    held = [set(beat.snapshots) if beat is not None else set() for beat in beats]
    return tuple(sorted(set.intersection(*held)))


def possible(
    allowed: Sequence[str], ranks: Mapping[int, Rank], snapshots: Sequence[int], alarms: Collection[Finding]
) -> tuple[str, ...]:
    """The actions that the policy may ask for now: no rollback where there is nothing to go back to, and
    none at all before every rank that would roll back has said what to."""
    allow = tuple(ACTIONS) if "all" in allowed else tuple(allowed)
    if "rollback" not in allow:
        return allow
    if any(rank.session.beat is None for rank in ranks.values()):
        return ()
    if not _before_trouble(snapshots, alarms)[0]:
        return tuple(action for action in allow if action != "rollback")
    return allow


def last_good(snapshots: Sequence[int], alarms: Collection[Finding]) -> int:
    """The newest snapshot that was taken well before what is found began.

    Raises:
        CommandError: there is none.
    """
    before, onset = _before_trouble(snapshots, alarms)
    if not before:
        held = f"those of {', '.join(map(str, snapshots))}" if snapshots else "none"
        since = "" if onset is None else f" before step {onset}, where the trouble began"
        raise CommandError("unavailable", f"no snapshot{since} is held by every rank: there are {held}")
    at_once = all(finding.kind == "non_finite" for finding in alarms)
    margin = 0 if at_once else CLEAR
    clear = [step for step in before if onset is None or step <= onset - margin]
    return max(clear) if clear else min(before)


def _before_trouble(snapshots: Sequence[int], alarms: Collection[Finding]) -> tuple[list[int], int | None]:
    """The snapshots from before what is found began, and where that is, None of nothing."""
    onset = min((finding.onset_step for finding in alarms), default=None)
    return [step for step in snapshots if onset is None or step < onset], onset
