import dataclasses

import msgspec
import numpy as np

from optwatch_tui.model import RunModel
from tests.unit.tui import recorded


def test_deltas_continue_the_view() -> None:
    model = recorded.model(last=1_000)
    assert model.update(*recorded.delta(11, 1_001, 1_050))
    snapshot = model.snapshot()
    assert snapshot.columns.step[-1] == 1_050
    assert snapshot.status.step == 1_050
    assert len(snapshot.samples.step) == len(recorded.tensors(1_000)[1].step)


def test_a_delta_that_the_view_had_already_changes_nothing() -> None:
    model = recorded.model(last=1_000)
    assert model.update(*recorded.delta(10, 990, 1_000))
    assert len(model.snapshot().columns.step) == 1_000


def test_a_gap_asks_for_the_view_again() -> None:
    model = recorded.model(last=1_000)
    assert not model.update(*recorded.delta(12, 1_051, 1_100))
    assert model.snapshot().columns.step[-1] == 1_000


def test_findings_and_commands_are_replaced_by_id() -> None:
    model = recorded.model(last=1_000)
    over = msgspec.structs.replace(recorded.DIVERGENCE, resolved_step=900)
    applied = msgspec.structs.replace(recorded.COMMANDS[1], state="applied", step=990)
    assert model.update(*recorded.delta(11, 1_001, 1_001, findings=(over,), commands=(applied,)))
    snapshot = model.snapshot()
    assert [finding.id for finding in snapshot.findings] == [3, 2, 1]
    assert [finding.id for finding in snapshot.open_findings] == [2]
    assert snapshot.proposals == ()
    assert [command.id for command in snapshot.commands] == ["2", "1"]


def test_the_worst_open_finding_comes_first() -> None:
    assert [finding.id for finding in recorded.snapshot().open_findings] == [3, 2]


def test_a_restart_is_never_undone_and_nothing_is_undone_twice() -> None:
    scaled, proposed = recorded.COMMANDS
    restarted = msgspec.structs.replace(proposed, state="applied", step=13_000)
    assert recorded.snapshot(commands=(scaled, restarted)).undoable == scaled
    taken_back = msgspec.structs.replace(restarted, id="3", action="scale_lr", undo_of="1")
    assert recorded.snapshot(commands=(scaled, restarted, taken_back)).undoable is None


def test_moments_are_means_over_all_elements() -> None:
    model = recorded.model(last=1_000)
    assert isinstance(model, RunModel)
    snapshot = model.snapshot()
    rms = snapshot.samples.stat("exp_avg_rms")[-1].astype(float)
    numel = snapshot.samples.numel()
    expected = np.sqrt((rms**2 * numel).sum() / numel.sum())
    assert np.isclose(snapshot.moments.last("exp_avg_rms") or 0.0, expected)


def test_snapshots_are_frozen() -> None:
    snapshot = recorded.snapshot(last=1_000)
    assert dataclasses.is_dataclass(snapshot)
    assert type(snapshot).__dataclass_params__.frozen  # type: ignore[attr-defined]
