import numpy as np

from optwatch.wire.frames import SeriesBlocks, TensorBlocks
from optwatch.wire.messages import TensorInfo
from optwatch.wire.requests import Series, Tensors
from optwatch_tui import history
from optwatch_tui.history import ColumnHistory, SampleHistory


def rows(first: int, last: int, columns: int = 1) -> SeriesBlocks:
    step = np.arange(first, last + 1)
    values = np.repeat(step[:, None].astype(float), columns, axis=1)
    return SeriesBlocks(step=step, values=values, logged=np.ones(values.shape, dtype=np.uint8))


def samples(first: int, last: int, tensors: int = 2) -> TensorBlocks:
    step = np.arange(first, last + 1)
    stats = np.repeat(step[:, None, None], tensors, axis=1).astype(np.float32)
    return TensorBlocks(step, stats, np.zeros((len(step), tensors, 1), dtype=np.uint64))


LOSS = Series(columns=("loss",), reduced=False)
TWO = Tensors(
    tensors=(TensorInfo("a", (2,), "float32", 0), TensorInfo("b", (3, 4), "float32", 0)),
    stats=("grad_rms",),
    counts=("grad_zeros",),
)


def test_rows_follow_one_another() -> None:
    kept = ColumnHistory()
    kept.append(LOSS, rows(1, 3))
    kept.append(LOSS, rows(4, 600))
    columns = kept.columns()
    assert columns.step.tolist() == list(range(1, 601))
    assert columns.last("loss") == 600
    assert columns.last("lr") is None


def test_what_was_handed_out_never_changes() -> None:
    kept = ColumnHistory()
    kept.append(LOSS, rows(1, 10))
    before = kept.columns()
    frozen = before.values.copy()
    kept.append(LOSS, rows(11, 12))
    kept.append(LOSS, SeriesBlocks(np.array([5]), np.array([[99.0]]), np.array([[1]], dtype=np.uint8)))
    assert np.array_equal(before.values, frozen)
    assert kept.columns().step.tolist() == [1, 2, 3, 4, 5]
    assert kept.columns().last("loss") == 99


def test_a_column_that_comes_later_was_not_logged_before() -> None:
    kept = ColumnHistory()
    kept.append(LOSS, rows(1, 2))
    kept.append(Series(columns=("val_loss", "loss"), reduced=False), rows(3, 4, 2))
    columns = kept.columns()
    assert columns.column("val_loss")[0].tolist() == [3, 4]
    assert columns.column("loss")[0].tolist() == [1, 2, 3, 4]
    assert columns.filled("val_loss", -1.0).tolist() == [-1, -1, 3, 4]


def test_a_long_run_is_thinned_out_without_losing_its_extremes() -> None:
    kept = ColumnHistory()
    size = history.MAX_ROWS + 10
    blocks = rows(1, size)
    blocks.values[1_000, 0] = 1e9
    blocks.values[2_000, 0] = -1e9
    kept.append(LOSS, blocks)
    columns = kept.columns()
    assert len(columns.step) < 0.8 * size
    assert columns.values.max() == 1e9
    assert columns.values.min() == -1e9
    assert (np.diff(columns.step) >= 0).all()
    assert columns.step[-1] == size


def test_a_bucket_with_nothing_logged_stays_empty() -> None:
    kept = ColumnHistory()
    blocks = rows(1, history.MAX_ROWS + 10)
    blocks.logged[:400] = 0
    kept.append(LOSS, blocks)
    assert kept.columns().column("loss")[0][0] > 400


def test_samples_follow_one_another_and_begin_anew_with_other_tensors() -> None:
    kept = SampleHistory()
    kept.append(TWO, samples(1, 3))
    kept.append(TWO, samples(4, 5))
    assert kept.samples().step.tolist() == [1, 2, 3, 4, 5]
    assert kept.samples().numel().tolist() == [2, 12]
    assert np.isnan(kept.samples().stat("param_rms")).all()
    other = Tensors(tensors=TWO.tensors[:1], stats=TWO.stats, counts=TWO.counts)
    kept.append(other, samples(6, 6, tensors=1))
    assert kept.samples().step.tolist() == [6]
    kept.append(Tensors(tensors=(), stats=(), counts=()), samples(7, 7, tensors=0))
    assert kept.samples().step.tolist() == [6]


def test_samples_are_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(history, "MAX_TENSOR_BYTES", 800)
    kept = SampleHistory()
    for step in range(1, 1_000):
        kept.append(TWO, samples(step, step))
    assert kept.samples().stat_values.nbytes <= 800
    assert kept.samples().step[0] == 1
    assert kept.samples().step[-1] == 999
