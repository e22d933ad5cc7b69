"""A run goes from one store to another, and into Parquet, bit for bit."""

import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from optwatch.cli import main
from optwatch.daemon.retention import OF_A_RUN
from optwatch.daemon.store import FILE, Store
from optwatch.daemon.upkeep import check
from tests.unit.daemon.test_upkeep import fill, lr


def rows(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, without the numbers that are each store's own."""
    connection = sqlite3.connect(directory / FILE)
    out = {}
    for table in OF_A_RUN:
        names = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name != "id"]
        out[table] = connection.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()
    connection.close()
    return out


def test_a_run_goes_to_another_store_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, file = tmp_path / "one", tmp_path / "other", tmp_path / "run.optwatch"
    fill(one)
    assert main(["store", "export", "r", str(file), "--store", str(one)]) == 0
    assert main(["store", "export", "r", str(file), "--store", str(one)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["store", "import", str(file), "--store", str(other)]) == 0
    assert rows(other) == rows(one)
    assert lr(other)[0].tobytes() == lr(one)[0].tobytes()
    assert check(other).problems == ()
    assert main(["store", "import", str(file), "--store", str(other)]) == 2
    assert "already" in capsys.readouterr().err
    assert rows(other) == rows(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "run.optwatch"]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "one")
    for name, data in (("text", b"hello"), ("empty", b""), ("half", b"SQLite format 3\0" + bytes(900))):
        (tmp_path / name).write_bytes(data)
        assert main(["store", "import", str(tmp_path / name), "--store", str(tmp_path / "other")]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert main(["store", "export", "nobody", str(tmp_path / "x"), "--store", str(tmp_path / "one")]) == 2
    assert "there is no run" in capsys.readouterr().err
    store = Store(tmp_path / "one")
    assert main(["store", "export", "r", str(tmp_path / "beside"), "--store", str(tmp_path / "one")]) == 0
    assert main(["store", "import", str(tmp_path / "beside"), "--store", str(tmp_path / "one")]) == 2
    assert "another daemon has the store" in capsys.readouterr().err
    store.close()


def test_parquet_holds_every_number(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    fill(tmp_path / "store")
    dest = tmp_path / "out"
    assert main(["export", "parquet", "r", str(dest), "--store", str(tmp_path / "store")]) == 0
    values, steps = lr(tmp_path / "store")
    for name in ("scalars", "merged"):
        table = pq.read_table(dest / f"{name}.parquet")
        column = table.column("lr")
        assert column.null_count == len(table) - len(values)
        assert np.asarray(column.drop_null()).tobytes() == values.tobytes()
    tensors = pq.read_table(dest / "tensors.parquet")
    assert sorted(set(tensors.column("step").to_pylist())) == steps
    assert pq.read_table(dest / "findings.parquet").column("kind").to_pylist() == ["divergence"]
    assert len(pq.read_table(dest / "commands.parquet")) == 0
    assert not list(dest.glob("*.part"))


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "store")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", "parquet", "r", str(tmp_path / "out"), "--store", str(tmp_path / "store")]) == 2
    assert "pip install 'optwatch[parquet]'" in capsys.readouterr().err
