"""Tables, colours and numbers as a reader sees them."""

import io
import time
from contextlib import redirect_stdout

import pytest

from optwatch.cli import show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a table on a terminal of 50 columns."""
    monkeypatch.setenv("COLUMNS", "50")
    with redirect_stdout(Terminal()) as screen:
        show.print_table(("NAME", "WORST", "N"), ROWS)
    return screen.getvalue().splitlines()


ROWS = [["a", ("▲ warning", show.YELLOW), "7"], ["long name", "-", "a text that is far too long for it"]]


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(("NAME", "WORST", "N"), ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "NAME       WORST      N",
        "a          ▲ warning  7",
        "long name  -          a text that is far too long for it",
    ]


def test_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(("N", "X"), [["1,000", "a"], ["7", "b"]], right=(0,))
    assert capsys.readouterr().out.splitlines() == ["    N  X", "1,000  a", "    7  b"]


def test_a_terminal_sees_colours_and_no_line_is_wider_than_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = on_terminal(monkeypatch)
    assert "\x1b[33m▲ warning\x1b[0m" in lines[1]
    assert lines[2].endswith("too long…")
    assert len(lines[2]) == 50


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(on_terminal(monkeypatch))


def test_numbers() -> None:
    values = (None, 0.0, 1234.5678, 3e-9, float("nan"), float("-inf"))
    assert [show.number(v) for v in values] == ["-", "0", "1235", "3e-09", "nan", "-inf"]
    assert [show.share(v) for v in (None, 0.0061)] == ["-", "0.61 %"]


@pytest.mark.parametrize(("passed", "text"), [(5, "5 s"), (150, "2 min"), (7_300, "2 h"), (200_000, "2 d")])
def test_how_long_ago(passed: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert show.ago(1e9 - passed) == f"{text} ago"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_json({"loss": float("nan"), "text": "α"})
    assert capsys.readouterr().out == '{\n  "loss": null,\n  "text": "α"\n}\n'


def test_what_a_name_holds_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(("NAME",), [["evil\x1b]0;owned\x07\n"]])
    assert capsys.readouterr().out.splitlines() == ["NAME", "evil\ufffd]0;owned\ufffd\ufffd"]
