"""The detectors over a corpus of real training logs: what is found, how late, and what is alarmed in vain.

    python -m tests.benchmarks.detection.corpus --corpus DIR

DIR holds `labels.csv` (file, label, t_last_good, …), the series it names, and `unlabelled.npz` (arrays
path, offset, step, loss, grad_norm, lr, eval_offset, eval_step, eval_val_loss; NaN: not logged).
`second_look.csv` beside this file says of each unlabelled series that was ever alarmed whether something was
wrong with it, by its plot and its evaluations (on training data too, which the detectors are not given).
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from optwatch.cli.diagnose import diagnose
from optwatch.cli.logs.columns import to_points
from optwatch.cli.logs.read import Source
from optwatch.detect.panel import Panel
from optwatch.series.points import Column
from optwatch.wire.findings import ALARMS, Finding

MUST = ("diverged", "late_divergence", "nan_from_start")
"""Labels of which every series has to be alarmed."""
SHOULD = ("unstable_oscillating", "spike_recovered", "stuck")
"""Labels of which, pooled, four in five have to be."""

SECOND_LOOK = Path(__file__).with_name("second_look.csv")


@dataclass(frozen=True)
class Labelled:
    """One series with a label, and what was found in it."""

    name: str
    label: str
    last_good: float
    findings: tuple[Finding, ...]

    @property
    def alarms(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity in ALARMS]

    @property
    def wrong(self) -> list[Finding]:
        """Alarms that the label says are false. Where a run overfits, `overfitting` is right."""
        healthy = self.label.startswith("healthy") or self.label == "converged_flat"
        right = {"overfitting"} if "overfit" in self.label else set[str]()
        return [finding for finding in self.alarms if healthy and finding.kind not in right]


def labelled(corpus: Path) -> list[Labelled]:
    """All labelled series, looked at as `optwatch diagnose` does."""
    with (corpus / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        path = str(corpus / row["file"])
        diagnosis = diagnose(Source(path, path), {})
        if diagnosis.error:
            raise ValueError(diagnosis.error)
        last_good = float(row["t_last_good"] or "nan")
        found.append(Labelled(Path(path).name, row["label"], last_good, diagnosis.findings))
    return found


def unlabelled(corpus: Path) -> Iterator[tuple[str, tuple[Finding, ...]]]:
    """All unlabelled series, and what was found."""
    with np.load(corpus / "unlabelled.npz", allow_pickle=False) as arrays:
        data = dict(arrays)
    for i, path in enumerate(data["path"]):
        points = slice(data["offset"][i], data["offset"][i + 1])
        evaluations = slice(data["eval_offset"][i], data["eval_offset"][i + 1])
        at, when = data["step"][points], data["eval_step"][evaluations]
        gap, late = np.full(len(at), np.nan), np.full(len(when), np.nan)
        steps = np.concatenate([at, when]).astype(np.float64)
        columns = {
            name: _column(np.concatenate([data[name][points], late])) for name in ("loss", "grad_norm", "lr")
        }
        columns["val_loss"] = _column(np.concatenate([gap, data["eval_val_loss"][evaluations]]))
        panel = Panel(str(path))
        panel.update(to_points(Column(steps, np.ones(len(steps), bool)), columns, []))
        yield str(path), panel.findings


def second_look() -> dict[str, str]:
    """Of unlabelled series by their paths: whether an alarm is `right` or `false`."""
    with SECOND_LOOK.open(newline="") as file:
        return {row["path"]: row["call"] for row in csv.DictReader(file)}


def _column(values: npt.NDArray[np.float32]) -> Column:
    return Column(values.astype(np.float64), ~np.isnan(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    series = labelled(corpus := parser.parse_args().corpus)
    groups = defaultdict(list)
    for one in series:
        groups[one.label].append(one)
    print(f"{'label':<32} series  alarmed  wrongly  kinds of the alarms")
    for label, members in sorted(groups.items()):
        kinds = sorted({finding.kind for one in members for finding in one.alarms})
        alarmed, wrong = sum(bool(one.alarms) for one in members), sum(bool(one.wrong) for one in members)
        print(f"{label[:32]:<32} {len(members):6}  {alarmed:7}  {wrong:7}  {', '.join(kinds)}")
    for one in (one for one in series if one.label in MUST):
        first = one.alarms[0] if one.alarms else None
        seen = "missed" if first is None else f"{first.kind} at step {first.step}"
        print(f"  {one.name[:60]:<60} last good {one.last_good:g}: {seen}")
    alarmed = [(path, [f for f in found if f.severity in ALARMS]) for path, found in unlabelled(corpus)]
    loud = [(path, alarms) for path, alarms in alarmed if alarms]
    calls = second_look()
    false = sum(calls.get(path) == "false" for path, _ in loud)
    new = sum(path not in calls for path, _ in loud)
    print(f"\nunlabelled: {len(loud)} of {len(alarmed)} alarmed, {false} falsely, {new} not looked at:")
    for path, alarms in loud:
        told = ", ".join(f"{finding.kind} {finding.onset_step}" for finding in alarms[:3])
        more = " …" if len(alarms) > 3 else ""
        print(f"  {calls.get(path, '?'):<5} {path[-70:]}: {told}{more}")


if __name__ == "__main__":
    main()
