"""Ranks become one series, whatever the order and the cut of what they send."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optwatch.series.merge import WAIT, Merger, Pending, select
from optwatch.series.norms import Norms
from optwatch.series.points import Column, Points, Table


def points(first: int, loss: list[float], rank: int) -> Points:
    n = len(loss)
    columns = {
        "loss": np.array(loss, dtype=np.float64),
        "lr": np.full(n, 0.1 + rank),
        "step_time": np.full(n, 1.0 + rank),
    }
    return Points(
        np.arange(first, first + n, dtype=np.int64),
        {name: Column(values, np.ones(n, dtype=bool)) for name, values in columns.items()},
        np.full(n, 100.0 + rank),
    )


def merged(ranks: dict[int, Points], norms: Norms | None) -> Points | None:
    pending = Pending()
    for rank, own in ranks.items():
        pending.add(rank, own)
    return pending.merge(1_000, norms)


@given(st.data())
def test_the_cut_makes_no_difference(data: st.DataObject) -> None:
    ranks, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    losses = np.random.default_rng(data.draw(st.integers(0, 1000))).normal(size=(ranks, n))
    merger = Merger()
    sent = [0] * ranks
    got: list[Points] = []
    while min(sent) < n:
        rank = data.draw(st.sampled_from([r for r in range(ranks) if sent[r] < n]))
        size = data.draw(st.integers(1, n - sent[rank]))
        merger.add(
            rank, points(sent[rank] + 1, losses[rank, sent[rank] : sent[rank] + size].tolist(), rank), 0.0
        )
        sent[rank] += size
        got += merger.take(range(ranks), 0.0)
        assert merger.step == (min(sent) or -1)
    assert np.concatenate([part.step for part in got]).tolist() == list(range(1, n + 1))
    merged = np.concatenate([part.column("loss").values for part in got])
    np.testing.assert_allclose(merged, losses.mean(axis=0), rtol=1e-12, atol=1e-15)
    assert {v for part in got for v in part.column("lr").values} == {0.1}
    assert {v for part in got for v in part.column("step_time").values} == {float(ranks)}


def test_a_step_0_is_handed_on() -> None:
    merger = Merger()
    merger.add(0, points(0, [1.0, 2.0], 0), now=0.0)
    assert [part.step.tolist() for part in merger.take({0}, now=0.0)] == [[0, 1]]
    assert merger.late == 0


def test_it_waits_but_not_for_ever() -> None:
    merger = Merger()
    merger.add(0, points(1, [1.0, 2.0], 0), now=0.0)
    assert merger.take({0, 1}, now=0.5) == []
    (late,) = merger.take({0, 1}, now=WAIT)
    assert late.column("loss").values.tolist() == [1.0, 2.0]
    merger.add(1, points(1, [3.0, 4.0, 5.0], 1), now=WAIT)
    assert merger.late == 2
    merger.add(0, points(3, [7.0], 0), now=WAIT)
    (part,) = merger.take({0, 1}, now=WAIT)
    assert part.step.tolist() == [3]
    assert part.column("loss").values.tolist() == [6.0]


def test_a_rank_that_is_gone_is_not_waited_for() -> None:
    merger = Merger()
    merger.add(0, points(1, [1.0], 0), now=0.0)
    merger.add(1, points(1, [3.0], 1), now=0.0)
    merger.add(0, points(2, [1.0], 0), now=0.0)
    assert [part.step.tolist() for part in merger.take({0, 1}, now=0.0)] == [[1]]
    assert [part.step.tolist() for part in merger.take({0}, now=0.1)] == [[2]]


def test_a_mean_over_a_non_finite_rank_is_non_finite() -> None:
    merger = Merger()
    for rank, value in ((0, np.inf), (1, -np.inf)):
        merger.add(rank, points(1, [value], rank), now=0.0)
    (part,) = merger.take({0, 1}, now=0.0)
    assert np.isnan(part.column("loss").values[0])
    assert part.column("loss").logged[0]


def test_ranks_that_send_tables_are_merged_as_those_that_send_columns() -> None:
    random = np.random.default_rng(0)
    names = ("loss", "lr", "step_time", "local_norm", "grad_norm")
    tables: dict[int, Points] = {}
    columns: dict[int, Points] = {}
    for rank in range(5):
        steps = np.arange(1, 40)[random.random(39) < 0.8]
        mask = random.random((len(steps), len(names))) < 0.9
        matrix = np.where(mask, random.choice([1.5, np.inf, -np.inf, np.nan, 3.0], mask.shape), np.nan)
        wall = 1e9 + steps + rank
        table = Table(names, matrix, mask)
        tables[rank] = Points(steps, table, wall)
        columns[rank] = Points(steps, {name: table[name] for name in names}, wall)
    one, other = merged(tables, None), merged(columns, None)
    assert one is not None
    assert other is not None
    assert one.columns.keys() == other.columns.keys() > set(names)
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name].values, other.columns[name].values)
        np.testing.assert_array_equal(one.columns[name].logged, other.columns[name].logged)
    np.testing.assert_array_equal(one.step, other.step)
    np.testing.assert_array_equal(one.wall, other.wall)


@given(st.data())
def test_ranks_that_log_different_columns_are_merged_as_if_all_came_at_once(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ranks, n = 4, 12
    whole = {
        rank: Points(
            np.arange(1, n + 1),
            {
                name: Column(random.normal(size=n), np.ones(n, dtype=bool))
                for name in ("loss", "lr", f"grad_norm@dp={rank // 2}/2#1a2b3c4d", f"own {rank % 3}")
            },
            1e9 + random.random(n),
        )
        for rank in range(ranks)
    }
    merger = Merger()
    got: list[Points] = []
    sent = [0] * ranks
    while min(sent) < n:
        rank = data.draw(st.sampled_from([r for r in range(ranks) if sent[r] < n]))
        upto = data.draw(st.integers(sent[rank] + 1, n))
        merger.add(rank, select(whole[rank], slice(sent[rank], upto)), 0.0)
        sent[rank] = upto
        got += merger.take(range(ranks), 0.0)
    wanted = merged(whole, Norms())
    assert wanted is not None
    assert {"grad_norm", "loss", "lr", "own 0", "own 1", "own 2"} == wanted.columns.keys()
    for name, column in wanted.columns.items():
        np.testing.assert_array_equal(
            np.concatenate([part.column(name).values for part in got]), column.values
        )
    np.testing.assert_array_equal(np.concatenate([part.wall for part in got]), wanted.wall)


@given(st.data())
def test_rows_of_several_ranks_at_once_are_merged_as_those_of_each_alone(
    data: st.DataObject,
) -> None:
    """As a daemon reads them back, and goes on with what the ranks send then."""
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ranks, n = 3, 9
    names = ("loss", "lr", "step_time")
    whole = {
        rank: Points(
            np.arange(1, n + 1),
            Table(names, random.normal(size=(n, 3)), random.random((n, 3)) < 0.8),
            1e9 + random.random(n),
        )
        for rank in range(ranks)
    }
    cut = {rank: data.draw(st.integers(0, n)) for rank in range(ranks)}
    whose = np.repeat(list(cut), list(cut.values()))
    step, table, wall = (
        np.concatenate([take(whole[rank])[: cut[rank]] for rank in cut])
        for take in (lambda p: p.step, lambda p: p.columns.matrix, lambda p: p.wall)
    )
    mask = np.concatenate([whole[rank].columns.mask[: cut[rank]] for rank in cut])
    order = np.argsort(step, kind="stable")
    one, other = Merger(), Merger()
    for rank in range(ranks):
        other.add(rank, select(whole[rank], slice(cut[rank])), 0.0)
    rows = Points(step[order], Table(names, table[order], mask[order]), wall[order])
    one.add_rows(whose[order], rows, 0.0)
    got: list[list[Points]] = []
    for merger in (one, other):
        early = merger.take(range(ranks), 0.0)
        assert merger.furthest == max(*cut.values(), 0)
        for rank in range(ranks):
            merger.add(rank, select(whole[rank], slice(cut[rank], None)), 0.0)
        got.append(early + merger.take(range(ranks), 0.0))
    assert [part.step.tolist() for part in got[0]] == [part.step.tolist() for part in got[1]]
    for part, wanted in zip(*got, strict=True):
        np.testing.assert_array_equal(part.wall, wanted.wall)
        for name in names:
            np.testing.assert_array_equal(part.column(name).values, wanted.column(name).values)
            np.testing.assert_array_equal(part.column(name).logged, wanted.column(name).logged)


def test_rows_with_other_columns_may_lie_before_those_that_are_there() -> None:
    merger = Merger()
    late, early = (
        Points(np.array([step]), Table((name,), np.ones((1, 1)), np.ones((1, 1), bool)))
        for step, name in ((2, "b"), (1, "a"))
    )
    for rows in (late, early):
        merger.add_rows(np.array([0]), rows, 0.0)
    assert [part.step.tolist() for part in merger.take({0}, 0.0)] == [[1, 2]]


def test_what_a_new_incarnation_repeats_is_not_handed_on() -> None:
    merger = Merger()
    merger.add(0, points(1, [1.0, 2.0, 3.0], 0), now=0.0)
    merger.add(1, points(1, [1.0], 1), now=0.0)
    assert [part.step.tolist() for part in merger.take({0, 1}, now=0.0)] == [[1]]
    merger.rewind(2)
    merger.add(0, points(3, [7.0], 0), now=0.0)
    merger.add(1, points(2, [4.0, 5.0], 1), now=0.0)
    (part,) = merger.take({0, 1}, now=0.0)
    assert part.step.tolist() == [2, 3]
    assert part.column("loss").values.tolist() == [3.0, 6.0]
