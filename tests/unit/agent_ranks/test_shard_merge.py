"""Records and norms of parts, merged, against those of whole tensors."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from optwatch.daemon.assembly import Record, add_up, assemble
from optwatch.series.norms import Norms
from optwatch.series.points import Column
from optwatch.series.shards import Holding, Plan
from optwatch.wire.messages import COUNTS, STATS, Schema, TensorInfo
from optwatch.wire.parts import Part, tensor_digest
from tests.histograms import counted

RNG = np.random.default_rng(5)


def record(g: np.ndarray, m: np.ndarray, v: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All statistics of one tensor from its gradient, moments and values, in float64, as on the wire."""
    numbers = dict.fromkeys(STATS, np.nan)
    if g.size:
        norm = np.sqrt(np.sum(g * g) * np.sum(m * m))
        numbers = {
            "grad_rms": np.sqrt(np.mean(g * g)),
            "grad_max": np.abs(g).max(),
            "exp_avg_rms": np.sqrt(np.mean(m * m)),
            "exp_avg_sq_mean": v.mean(),
            "exp_avg_sq_min": v.min(),
            "exp_avg_sq_max": v.max(),
            "param_rms": np.sqrt(np.mean(p * p)),
            "param_max": np.abs(p).max(),
            "update_rms": np.sqrt(np.mean((0.1 * m) ** 2)),
            "rms_t": np.sqrt(np.mean(g * g / np.maximum(v, 1e-16))),
            "cos_grad_exp_avg": np.sum(g * m) / norm if norm else np.nan,
            "eps_share": np.mean(np.sqrt(v) < 0.3),
        }
    counts = [np.sum(g == 0), np.sum(~np.isfinite(g))]
    return np.array([numbers[s] for s in STATS], np.float32), np.array(counts, np.uint64)


def schema(tensors: list[TensorInfo]) -> Schema:
    return Schema(session="s", optimizer=0, digest="d", scalars=(), tensors=tuple(tensors))


def plan_of(schemas: dict[int, Schema]) -> Plan:
    return Plan({rank: Holding(schema) for rank, schema in schemas.items()})


def tensors_of(n: int) -> list[np.ndarray]:
    g, m, p = RNG.normal(size=(3, n))
    g[RNG.random(n) < 0.2] = 0
    return [g, m, RNG.normal(size=n) ** 2, p]


@pytest.mark.parametrize(
    "cuts", [(0, 5, 10, 12), (0, 4, 8, 12), (0, 6, 12, 12), (0, 12, 12, 12), (0, 1, 2, 12)], ids=str
)
def test_uneven_and_empty_parts_make_up_the_whole(cuts: tuple[int, ...]) -> None:
    whole = {name: tensors_of(12) for name in ("a", "b")}
    infos, records = {}, {}
    for rank, (low, high) in enumerate(pairwise(cuts)):
        infos[rank] = schema(
            [TensorInfo(name, (12,), "float32", 0, (("dp", rank),), high - low) for name in whole]
        )
        parts = [record(*(x[low:high] for x in tensor)) for tensor in whole.values()]
        records[rank] = np.stack([s for s, _ in parts]), np.stack([c for _, c in parts])
    plan = plan_of(infos)
    assert plan.complete
    assert plan.ranks == (0, 1, 2)
    assert [(t.name, t.shape, t.shard, t.held) for t in plan.tensors] == [
        (name, (12,), (), None) for name in whole
    ]
    stats, counts = plan.merge(records)
    for row, tensor in enumerate(whole.values()):
        wanted, zeros = record(*tensor)
        np.testing.assert_allclose(stats[row], wanted, rtol=1e-6)
        np.testing.assert_array_equal(counts[row], zeros)


def test_replicas_are_counted_once_and_only_the_lowest_rank_of_each_is_needed() -> None:
    infos = {rank: schema([TensorInfo("w", (8,), "float32", 0, (("dp", rank % 2),), 4)]) for rank in range(4)}
    plan = plan_of(infos)
    assert plan.ranks == (0, 1)
    assert plan.complete
    assert plan_of({rank: infos[rank] for rank in (1, 2, 3)}).ranks == (1, 2)
    assert not plan_of({rank: infos[rank] for rank in (1, 3)}).complete


def test_a_part_without_a_number_leaves_the_whole_without_one() -> None:
    infos = {rank: schema([TensorInfo("w", (8,), "float32", 0, (("dp", rank),), 4)]) for rank in range(2)}
    records = {rank: tuple(x[None] for x in record(*tensors_of(4))) for rank in range(2)}
    records[1][0][0, STATS.index("grad_rms")] = np.nan
    stats, _ = plan_of(infos).merge(records)
    assert np.isnan(stats[0, STATS.index("grad_rms")])
    assert np.isnan(stats[0, STATS.index("cos_grad_exp_avg")])
    assert np.isfinite(stats[0, STATS.index("param_rms")])


def test_large_and_tiny_numbers_and_large_counts_survive() -> None:
    infos = {
        rank: schema([TensorInfo("w", (1 << 30,), "float32", 0, (("dp", rank),), 1 << 29)])
        for rank in range(2)
    }
    stats = np.full((1, len(STATS)), 1e-30, np.float32)
    stats[0, STATS.index("grad_rms")] = 3e38
    counts = np.full((1, len(COUNTS)), (1 << 29) - 1, np.uint64)
    merged, total = plan_of(infos).merge({0: (stats, counts), 1: (stats, counts)})
    np.testing.assert_allclose(merged[0, STATS.index("grad_rms")], np.float32(3e38), rtol=1e-6)
    np.testing.assert_allclose(merged[0, STATS.index("update_rms")], np.float32(1e-30), rtol=1e-6)
    assert total.tolist() == [[(1 << 30) - 2] * len(COUNTS)]


def test_a_part_is_named_and_read_back() -> None:
    part = Part("grad_norm", (("dp", 0, 2), ("tp", 1, 4)), tensor_digest([("w", (2, 3))]))
    assert Part.parse(part.column) == part
    assert part.siblings == 8
    whole = Part("param_norm", (), tensor_digest([]))
    assert Part.parse(whole.column) == whole
    for column in (
        "grad_norm",
        "loss@dp=0/2#00000000",
        "grad_norm@dp=2/2#00000000",
        "grad_norm@=0/2#0000000",
        "grad_norm@dp=0/2,#0000000z",
        "grad_norm@dp=x/2#00000000",
    ):
        assert Part.parse(column) is None


def column(values: list[float], logged: list[bool] | None = None) -> Column:
    return Column(np.array(values), np.array(logged or [True] * len(values)))


def test_parts_of_several_families_and_replicas_add_up() -> None:
    both, one = ("dp", 2), "11111111"

    def part(at: int, tensors: str) -> str:
        return Part("grad_norm", ((both[0], at, both[1]),), tensors).column

    rows = np.arange(2)
    pieces = [
        ({part(0, one): column([3.0, 1e200]), "grad_norm@#22222222": column([12.0, 0.0])}, rows),
        ({part(1, one): column([4.0, 1e200]), "grad_norm@#22222222": column([12.0, 0.0])}, rows),
    ]
    folded = Norms().fold(2, pieces)["grad_norm"]
    np.testing.assert_allclose(folded.values, [13.0, np.sqrt(2) * 1e200], rtol=1e-15)
    assert folded.logged.all()


def test_a_norm_with_a_part_missing_is_not_given() -> None:
    norms = Norms()
    rows = np.arange(2)
    parts = [Part("grad_norm", (("dp", at, 2),), "11111111").column for at in range(2)]
    folded = norms.fold(2, [({parts[0]: column([3.0, 3.0])}, rows), ({parts[1]: column([4.0])}, rows[:1])])
    assert folded["grad_norm"].logged.tolist() == [True, False]
    assert np.isnan(folded["grad_norm"].values[1])
    stage = "grad_norm@#22222222"
    norms.fold(2, [({"grad_norm@#33333333": column([1.0, 1.0]), stage: column([1.0, 1.0])}, rows)])
    assert not norms.fold(2, [({stage: column([1.0, 1.0])}, rows)])["grad_norm"].logged.any()
    norms.begin(1)
    assert norms.fold(2, [({stage: column([1.0, 1.0])}, rows)])["grad_norm"].logged.all()


def test_a_non_finite_part_makes_the_norm_non_finite_and_logged() -> None:
    parts = [Part("grad_norm", (("dp", at, 2),), "11111111").column for at in range(2)]
    rows = np.arange(2)
    pieces = [({parts[0]: column([np.nan, np.inf])}, rows), ({parts[1]: column([4.0, 4.0])}, rows)]
    folded = Norms().fold(2, pieces)["grad_norm"]
    assert folded.logged.all()
    assert np.isnan(folded.values[0])
    assert folded.values[1] == np.inf


def test_histograms_of_parts_add_up_to_that_of_the_whole_or_there_is_none() -> None:
    cuts = (0, 5, 5, 12)
    whole = {name: RNG.normal(size=12) * 10.0 ** RNG.integers(-6, 6, 12) for name in ("a", "b")}
    parts = {}
    for rank, (low, high) in enumerate(pairwise(cuts)):
        infos = [TensorInfo(name, (12,), "float32", 0, (("dp", rank),), high - low) for name in whole]
        of = msgspec.structs.replace(schema(infos), stats=(), counts=())
        counts = np.stack([counted(x[low:high]) for x in whole.values()]).astype(np.uint32)
        parts[rank] = Record(7, of, np.empty((2, 0), np.float32), counts)
    (record,) = assemble([parts], add_up)
    assert [t.name for t in record.schema.tensors] == ["a", "b"]
    assert record.counts.dtype == np.uint64
    np.testing.assert_array_equal(record.counts, np.stack([counted(x) for x in whole.values()]))
    parts[2].counts[0] = 0  # as where a rank cannot read its gradient
    (record,) = assemble([parts], add_up)
    assert not record.counts[0].any()
    np.testing.assert_array_equal(record.counts[1], counted(whole["b"]))
    assert assemble([{rank: parts[rank] for rank in (0, 1)}], add_up) == []
