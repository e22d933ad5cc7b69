"""Charts and screens as files: CSV of the numbers in view, pictures as SVG and PNG."""

import csv
import io
import re
from pathlib import Path

import numpy as np

from optwatch_tui.charts import Picture
from optwatch_tui.figure import line_name


class NotSaved(Exception):
    """Why something could not be saved, in a sentence."""


def csv_text(picture: Picture) -> str:
    """What is in view as CSV: a column for the steps (or seconds), one for each line, and its smoothing."""
    names: list[str] = []
    rows: dict[tuple[float, int], dict[str, float]] = {}
    for line in picture.lines:
        first = int(np.searchsorted(line.step, picture.first))
        last = int(np.searchsorted(line.step, picture.last, side="right"))
        name = line_name(picture, line)
        columns = {name: line.value if line.raw is None else line.raw}
        if line.raw is not None:
            columns[f"{name} smoothed"] = line.value
        if line.low is not None and line.high is not None:
            columns |= {f"{name} min": line.low, f"{name} max": line.high}
        names += columns
        before, repeated = None, 0
        for at in range(first, last):
            place = float(line.step[at])
            # Reduced history has two rows at one step: its lowest and its highest.
            repeated = repeated + 1 if place == before else 0
            before = place
            row = rows.setdefault((place, repeated), {})
            row.update((key, float(values[at])) for key, values in columns.items())
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["seconds" if picture.seconds else "step", *names])
    for (place, _), row in sorted(rows.items(), key=lambda entry: entry[0]):
        writer.writerow([f"{place:.10g}", *(repr(row[name]) if name in row else "" for name in names)])
    return out.getvalue()


def png(svg: str) -> bytes:
    """An SVG document as a PNG, twice its size in pixels.

    Raises:
        NotSaved: the extra that draws it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise NotSaved("PNG needs its extra: pip install 'optwatch[png]'; SVG and CSV need none") from None
    # The font of a screen would be fetched from a server: the one at hand is as good.
    local = re.sub(r"@font-face\s*\{[^}]*\}", "", svg).replace("Fira Code", "DejaVu Sans Mono")
    return bytes(resvg_py.svg_to_bytes(svg_string=local, zoom=2.0, monospace_family="DejaVu Sans Mono"))


def save(content: str | bytes, name: str, ending: str, folder: Path | None = None) -> Path:
    """Write a new file beside where the program was started; no file that is there is ever overwritten.

    Raises:
        NotSaved: it cannot be written there.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "optwatch"
    data = content.encode() if isinstance(content, str) else content
    try:
        folder = Path.cwd() if folder is None else folder
        for number in range(1, 10_000):
            path = folder / (f"{stem}.{ending}" if number == 1 else f"{stem}-{number}.{ending}")
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise NotSaved(
            f"cannot save to {folder or 'the current folder'}: {error.strerror or error}"
        ) from None
    raise NotSaved(f"there are too many files called {stem} in {folder}")
