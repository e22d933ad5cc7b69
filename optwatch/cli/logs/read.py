"""What lies at a path: which runs it holds, and the points of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from optwatch.cli.archive import Archive
from optwatch.cli.errors import Wrong
from optwatch.cli.logs.tensorboard import read_tensorboard, run_directories
from optwatch.cli.logs.text import read_csv, read_json
from optwatch.daemon.store import FILE
from optwatch.series.points import Points


@dataclass(frozen=True)
class Source:
    """One run at a path. `shown` is what it is called in a report; `run` its id within a store."""

    path: str
    shown: str
    run: str = ""


def sources(path: str) -> list[Source]:
    """The runs at a path: a file is one, a directory of TensorBoard or a store holds any number.

    Raises:
        Wrong: nothing there that can be read as a log.
    """
    place = Path(path)
    if place.is_file():
        return [Source(path, path)]
    if not place.is_dir():
        raise Wrong(f"{path}: no such file or directory")
    if (place / FILE).is_file():
        heads = Archive(place).heads()
        return [Source(path, f"{path}#{head.name}", head.run) for head in heads]
    found = run_directories(place)
    if not found:
        raise Wrong(f"{path}: neither TensorBoard files nor an optwatch store in this directory")
    return [Source(str(place), path)] if found == [place] else [Source(str(d), str(d)) for d in found]


def read(source: Source, wanted: Mapping[str, str], notes: list[str]) -> Iterator[Points]:
    """The points of a run, in order.

    Raises:
        Wrong: it cannot be read; the message begins with its path.
    """
    place = Path(source.path)
    try:
        if source.run:
            yield from Archive(place).history.sampled_points(source.run, 0)
        elif place.is_dir():
            yield read_tensorboard(place, wanted, notes)
        elif place.name.removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")):
            yield read_json(place, wanted, notes)
        else:
            yield read_csv(place, wanted, notes)
    except Wrong as error:
        raise Wrong(f"{source.shown}: {error}") from None
    except UnicodeDecodeError:
        raise Wrong(
            f"{source.shown}: this is no text, and so neither CSV nor JSON lines (compressed ones end in .gz)"
        ) from None
    except (OSError, EOFError) as error:
        raise Wrong(f"{source.shown}: {error}") from None
