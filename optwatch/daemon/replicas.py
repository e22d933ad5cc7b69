"""Replicas: whether the ranks that hold the same tensors hold the same bits, and if not, which one is off.

Ranks send a checksum for each group of tensors, at steps that they share. Where those of a group differ,
what most replicas say is right; with two, or with no majority, nobody can tell who is. A few of both sides
are asked for the checksums of each tensor, which name the tensor and the part of it (the parameter, a
moment).
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optwatch.detect.base import Signal
from optwatch.wire.findings import Finding, Remedy
from optwatch.wire.messages import Sums

WAIT = 5.0
"""Seconds that a comparison waits for the checksums of ranks that are alive."""
PATIENCE = 3.0
"""Seconds that a finding waits for the name of the tensor."""
UNDECIDED = 4
"""Comparisons in a row that wait for one with a majority."""
MAX_CHECKS = 128
"""Steps whose checksums wait, of one optimizer."""
ASKED = 4
"""Ranks that are asked, at most, of those that are off and of those that agree."""

U8 = npt.NDArray[np.uint64]


@dataclass
class Arrivals:
    """The checksums of one step, as they come in: rank → group → checksum."""

    began: float
    sums: dict[int, Mapping[str, int]] = field(default_factory=dict)
    declared: bool = False


@dataclass(frozen=True)
class Verdict:
    """One group in which replicas differ. `agreeing` is the majority, empty where there is none."""

    group: str
    agreeing: tuple[int, ...]
    off: tuple[int, ...]


@dataclass
class Dispute:
    """A step at which replicas differ, while the ranks are asked which tensor it is."""

    optimizer: int
    step: int
    verdicts: list[Verdict]
    until: float
    asked: set[int]
    details: dict[int, tuple[Sums, U8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """Ask a rank for the checksums of each tensor at a step."""

    rank: int
    optimizer: int
    step: int


class Replicas:
    """Follows the replicas of one run."""

    def __init__(self) -> None:
        self.checked: dict[int, tuple[int, bool | None]] = {}
        """Of each rank: the step of its last comparison, and whether it agreed; None: nobody to compare."""
        self.agreed: deque[tuple[int, bool]] = deque(maxlen=MAX_CHECKS)
        """The last steps of the first optimizer that were compared, and whether all replicas agreed."""
        self.questions: list[Question] = []
        """What is to be asked; whoever asks takes them out."""
        self.missed = 0
        """Checks that were given up since too many waited."""
        self._waiting: dict[int, dict[int, Arrivals]] = {}
        self._reached: dict[tuple[int, int], int] = {}
        self._agreed_at: dict[tuple[int, str], int] = {}
        """The last step at which all replicas of an optimizer's group agreed."""
        self._holders: dict[tuple[int, str], set[int]] = {}
        """The ranks that have sent checksums of an optimizer's group."""
        self._undecided: dict[tuple[int, str], int] = {}
        """How often in a row there was no majority without some of them."""
        self._disputes: list[Dispute] = []
        self._open: dict[str, int | None] = {}
        """Findings that are open: their key, and the rank that is off."""

    @property
    def compared(self) -> set[int]:
        """The ranks that turned out to hold replicas."""
        return {rank for rank, (_, agrees) in self.checked.items() if agrees is not None}

    def restore(self, opened: Mapping[str, Finding]) -> None:
        """Take up the findings that were open when a daemon before this one ended, by their key."""
        self._open.update({key: finding.rank for key, finding in opened.items()})

    def forget(self, rank: int) -> None:
        """Another process speaks for this rank now: what the former one sent is not waited for."""
        self.checked.pop(rank, None)
        for at in [at for at in self._reached if at[0] == rank]:
            del self._reached[at]
        for steps in self._waiting.values():
            for arrivals in steps.values():
                arrivals.sums.pop(rank, None)

    def take(
        self, rank: int, optimizer: int, step: int, sums: Mapping[str, int], declared: bool, now: float
    ) -> None:
        """Take the checksums of a rank after a step."""
        self._reached[rank, optimizer] = step
        steps = self._waiting.setdefault(optimizer, {})
        arrivals = steps.setdefault(step, Arrivals(now))
        arrivals.sums[rank] = sums
        arrivals.declared |= declared
        if len(steps) > MAX_CHECKS:
            del steps[min(steps)]
            self.missed += 1

    def detail(self, rank: int, sums: Sums, block: U8) -> None:
        """Take a rank's checksums of each tensor."""
        for dispute in self._disputes:
            if (dispute.optimizer, dispute.step) == (sums.optimizer, sums.step) and rank in dispute.asked:
                dispute.details[rank] = sums, block

    def look(self, expected: Collection[int], now: float) -> list[Signal]:
        """Compare what is complete, which is what all `expected` ranks sent; what began or is over."""
        signals: list[Signal] = []
        for optimizer, steps in self._waiting.items():
            upto = min((self._reached.get((rank, optimizer), -1) for rank in expected), default=-1)
            for step in sorted(steps):
                if step > upto and now - steps[step].began < WAIT:
                    break
                signals += self._compare(optimizer, step, steps.pop(step), set(expected), now)
        for dispute in list(self._disputes):
            if dispute.asked <= dispute.details.keys() or now >= dispute.until:
                self._disputes.remove(dispute)
                signals += self._judge(dispute)
        return signals

    def _compare(
        self, optimizer: int, step: int, arrivals: Arrivals, expected: set[int], now: float
    ) -> list[Signal]:
        groups: dict[str, dict[int, int]] = {}
        for rank, sums in arrivals.sums.items():
            for group, value in sums.items():
                groups.setdefault(group, {})[rank] = value
        verdicts: list[Verdict] = []
        compared: set[int] = set()
        suspects = {rank for rank in self._open.values() if rank is not None}
        for group, values in groups.items():
            if len(values) < 2:
                continue
            verdict = _verdict(group, values, suspects)
            if self._awaits_others(optimizer, group, values.keys(), expected, verdict):
                continue
            known = arrivals.declared or (optimizer, group) in self._agreed_at or bool(self._open)
            if verdict is None:
                self._agreed_at[optimizer, group] = step
            elif known or verdict.agreeing:
                verdicts.append(verdict)
            else:  # nothing says that they are replicas at all
                continue
            compared |= values.keys()
        off = {rank for verdict in verdicts for rank in verdict.off}
        for rank in arrivals.sums:
            self.checked[rank] = step, rank not in off if rank in compared else None
        if optimizer == 0 and compared:
            self.agreed.append((step, not verdicts))
        signals = self._resolve(optimizer, step, verdicts, compared - off)
        if fresh := [v for v in verdicts if any(key not in self._open for key in _keys(optimizer, v))]:
            asked = {r for v in fresh for r in (*v.off[:ASKED], *v.agreeing[:ASKED])}
            self.questions += [Question(rank, optimizer, step) for rank in sorted(asked)]
            self._disputes.append(Dispute(optimizer, step, fresh, now + PATIENCE, asked))
            for verdict in fresh:
                self._open.update(_keys(optimizer, verdict))
        return signals

    def _awaits_others(
        self,
        optimizer: int,
        group: str,
        ranks: Collection[int],
        expected: set[int],
        verdict: Verdict | None,
    ) -> bool:
        """Whether there is no majority only since some ranks check less often: a check that they make, too,
        will say who is right. A few times in a row at most, they may have ceased to check."""
        holders = self._holders.setdefault((optimizer, group), set())
        holders.update(ranks)
        if verdict is None or verdict.agreeing or not (holders & expected) - set(ranks):
            self._undecided.pop((optimizer, group), None)
            return False
        times = self._undecided[optimizer, group] = self._undecided.get((optimizer, group), 0) + 1
        return times <= UNDECIDED

    def _resolve(
        self, optimizer: int, step: int, verdicts: list[Verdict], right: Collection[int]
    ) -> list[Signal]:
        """The findings whose rank agrees again, or whose group does."""
        still = {key for verdict in verdicts for key in _keys(optimizer, verdict)}
        # What is not told yet is told first: also a difference that was there for one check.
        still |= {
            key
            for dispute in self._disputes
            for verdict in dispute.verdicts
            for key in _keys(dispute.optimizer, verdict)
        }
        prefix = f"{optimizer}/"
        over = []
        for key, rank in list(self._open.items()):
            if not key.startswith(prefix) or key in still:
                continue
            if (rank in right) if rank is not None else not verdicts and right:
                del self._open[key]
                over.append(
                    Signal(
                        kind="replica_desync",
                        step=step,
                        summary=f"the replicas agree again at step {step}",
                        severity="critical",
                        onset_step=step,
                        key=key,
                        over=True,
                        rank=rank,
                    )
                )
        return over

    def _judge(self, dispute: Dispute) -> list[Signal]:
        """Findings for a dispute, with the tensors that the details name."""
        signals = []
        told: set[str] = set()
        for verdict in dispute.verdicts:
            since = self._agreed_at.get((dispute.optimizer, verdict.group))
            for key, rank in _keys(dispute.optimizer, verdict).items():
                if key in told:
                    continue
                told.add(key)
                one, others = (
                    (rank, verdict.agreeing) if rank is not None else (verdict.off[0], verdict.off[1:])
                )
                where = _difference(dispute, verdict.group, one, others)
                signals.append(_signal(dispute, verdict, key, rank, where, since))
        return signals


@dataclass(frozen=True)
class Difference:
    """What differs between two replicas: tensors, and parts of the first of them."""

    tensors: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    of: int = 0
    """Tensors that were compared."""


def _verdict(group: str, values: Mapping[int, int], suspects: Collection[int]) -> Verdict | None:
    """Who is off in a group, None where all agree. `suspects` were off before, and have no say in a tie."""
    counts = Counter(values.values()).most_common(2)
    if len(counts) == 1:
        return None
    ranks = sorted(values)
    usual, many = counts[0]
    if 2 * many <= len(values):
        trusted = {value for rank, value in values.items() if rank not in suspects}
        if len(trusted) != 1:
            return Verdict(group, (), tuple(ranks))
        (usual,) = trusted
    return Verdict(
        group,
        tuple(rank for rank in ranks if values[rank] == usual),
        tuple(rank for rank in ranks if values[rank] != usual),
    )


def _keys(optimizer: int, verdict: Verdict) -> dict[str, int | None]:
    """The keys of a verdict's findings, and the rank that each names: one for each rank that is off."""
    if verdict.agreeing:
        return {f"{optimizer}/rank {rank}": rank for rank in verdict.off}
    return {f"{optimizer}/group {verdict.group}": None}


def _difference(dispute: Dispute, group: str, rank: int, others: Iterable[int]) -> Difference:
    """What differs between a rank and the first of the others whose details came."""
    mine = dispute.details.get(rank)
    for other in others:
        theirs = dispute.details.get(other)
        if mine is None or theirs is None:
            continue
        ours, yours = _rows(*mine, group), _rows(*theirs, group)
        shared = [name for name in ours if name in yours]
        differing = {
            name: tuple(part for part in ours[name] if ours[name][part] != yours[name].get(part))
            for name in shared
        }
        tensors = tuple(name for name in shared if differing[name])
        if tensors:
            return Difference(tensors, differing[tensors[0]], len(shared))
    return Difference()


def _rows(sums: Sums, block: U8, group: str) -> dict[str, dict[str, int]]:
    """name → part → checksum, of one group's tensors."""
    return {
        name: dict(zip(sums.parts, row, strict=True))
        for name, of, row in zip(sums.names, sums.groups, block.tolist(), strict=True)
        if of == group
    }


def _signal(
    dispute: Dispute, verdict: Verdict, key: str, rank: int | None, where: Difference, since: int | None
) -> Signal:
    step = dispute.step
    many = len(verdict.agreeing) + len(verdict.off)
    tensor = where.tensors[0] if where.tensors else None
    what = (
        "what it holds"
        if tensor is None
        else f"{tensor} ({', '.join(where.parts)})"
        + (f" and {len(where.tensors) - 1} other tensors" if len(where.tensors) > 1 else "")
    )
    if rank is not None:
        summary = (
            f"rank {rank} differs from {len(verdict.agreeing)} of {many} replicas in {what} after step {step}"
        )
    else:
        ranks = ", ".join(map(str, verdict.off[:8]))
        summary = f"ranks {ranks} differ in {what} after step {step}; no majority says which one is right"
    evidence: dict[str, float | int | str] = {
        "replicas": many,
        "agreeing": len(verdict.agreeing),
        "ranks_agreeing": ", ".join(map(str, verdict.agreeing[:16])),
        "ranks_off": ", ".join(map(str, verdict.off[:16])),
    }
    if where.tensors:
        evidence |= {"parts": ", ".join(where.parts), "tensors": len(where.tensors), "of_tensors": where.of}
    if since is not None:
        evidence["agreed_step"] = since
    before = f" before step {since + 1}" if since is not None else ""
    return Signal(
        kind="replica_desync",
        step=step,
        summary=summary,
        severity="critical",
        onset_step=step if since is None else min(since + 1, step),
        key=key,
        rank=rank,
        tensor=tensor,
        evidence=evidence,
        remedies=(
            Remedy(
                "advice", {}, f"go back to a checkpoint{before}, or broadcast parameters and optimizer state"
            ),
            Remedy("advice", {}, "test the memory and the device of that rank, or leave its host out"),
        ),
    )
