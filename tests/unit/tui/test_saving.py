"""Charts and screens as files."""

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from optwatch_tui.charts import CHARTS, Picture, picture
from optwatch_tui.figure import figure
from optwatch_tui.look import Look, Window
from optwatch_tui.saving import NotSaved, csv_text, png, save
from optwatch_tui.theme import DARK, LIGHT
from tests.unit.tui import recorded

SNAPSHOT = recorded.snapshot(last=2_000)
WHOLE = recorded.snapshot()
"""With its findings, actions and marks in view."""


def shown(key: str, look: Look, whole: bool = False) -> Picture:
    (spec,) = (spec for spec in CHARTS if spec.key == key)
    return picture(spec, WHOLE if whole else SNAPSHOT, look, None)


def rows(chart: Picture) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(chart))))


def test_csv_holds_what_is_in_view_and_nothing_else() -> None:
    table = rows(shown("loss", Look(Window(99, 100))))
    assert [int(row["step"]) for row in table] == list(range(1_801, 1_901))
    loss = SNAPSHOT.columns.column("loss")[1][1_800:1_900]
    assert [float(row["loss"]) for row in table] == loss.tolist()
    assert [row["step"] for row in table if row["val"]] == ["1850", "1900"]


def test_csv_has_the_smoothed_line_beside_the_raw_one() -> None:
    table = rows(shown("loss", Look(smoothing="strong")))
    raw, smooth = (np.array([float(row[name]) for row in table]) for name in ("loss", "loss smoothed"))
    assert np.array_equal(raw, SNAPSHOT.columns.column("loss")[1])
    assert np.diff(smooth).std() < 0.2 * np.diff(raw).std()


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("key", [spec.key for spec in CHARTS])
def test_every_chart_is_drawn_as_svg(key: str, palette) -> None:  # type: ignore[no-untyped-def]
    root = ElementTree.fromstring(
        figure(shown(key, Look(smoothing="light"), whole=True), "a <run> & co", palette)
    )
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("text")]
    assert any(text.startswith("a <run> & co") for text in texts)
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) >= 2  # the axes and a line
    if key == "loss":
        assert {"▲", "✓", "✖", "◆"} <= set(texts)


def test_a_spike_is_in_the_drawing_however_many_points_there_are() -> None:
    drawn = figure(shown("loss", Look()), "x", DARK)
    heights = [float(point.split(",")[1]) for point in drawn.split('points="')[2].split('"')[0].split()]
    assert min(heights) < 150  # the spike is near the top


def test_png_is_a_picture_of_the_svg() -> None:
    data = png(figure(shown("loss", Look()), "x", DARK))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == 1_920


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    first, second = save("a", "optwatch-run/..\x1b[0m x", "csv", tmp_path), None
    second = save(b"b", "optwatch-run/..\x1b[0m x", "csv", tmp_path)
    assert first.parent == second.parent == tmp_path
    assert (first.read_text(), second.read_text()) == ("a", "b")
    assert second.stem == f"{first.stem}-2"


def test_a_folder_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotSaved, match=r"cannot save to .*: No such file"):
        save("a", "x", "csv", tmp_path / "gone")
