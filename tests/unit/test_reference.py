"""The reference in `examples/reference` says what the code says, of everything that has a name."""

from pathlib import Path

import pytest

from optwatch.wire import meanings
from optwatch.wire.findings import KINDS, SEVERITIES
from optwatch.wire.messages import CORE_SCALARS, COUNTS, STATS
from tests import reference

PAGES = reference.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_code_has_it(name: str) -> None:
    path = reference.DIRECTORY / name
    assert path.read_text() == PAGES[name], f"{path} is out of date: make reference"


def test_there_are_no_other_pages() -> None:
    assert {path.name for path in reference.DIRECTORY.iterdir()} == set(PAGES)


def test_every_name_has_a_meaning() -> None:
    assert set(meanings.KINDS) == set(KINDS)
    assert set(meanings.SEVERITIES) == set(SEVERITIES)
    assert set(meanings.STATISTICS) == {*STATS, *COUNTS}
    assert set(CORE_SCALARS) <= set(meanings.COLUMNS)


def test_no_page_depends_on_the_machine() -> None:
    assert not any(str(Path.home()) in text for text in PAGES.values())
