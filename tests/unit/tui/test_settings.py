"""Keys, theme and smoothing of the user's own."""

from pathlib import Path

import pytest

from optwatch_tui.app import OptwatchApp
from optwatch_tui.bindings import KEYS
from optwatch_tui.screens.confirm import ConfirmScreen
from optwatch_tui.screens.run import RunScreen
from optwatch_tui.settings import DEFAULTS, Settings, SettingsError, canonical, load
from tests.unit.tui import recorded
from tests.unit.tui.recorded import NOW
from tests.unit.tui.test_screens import text


def given(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "tui.toml"
    path.write_text(content)
    return path


def test_without_a_file_all_is_as_usual(tmp_path: Path) -> None:
    assert load(tmp_path / "tui.toml") == DEFAULTS
    assert DEFAULTS.in_force() == KEYS


def test_what_a_file_may_say(tmp_path: Path) -> None:
    path = given(
        tmp_path, 'theme = "light"\nsmoothing = "strong"\n[keys]\nrestart = "f5"\npause = "?"\nhelp = "H"'
    )
    settings = load(path)
    assert (settings.theme, settings.smoothing) == ("optwatch-light", "strong")
    keys = {key.name: key for key in settings.in_force()}
    assert (keys["restart"].key, keys["restart"].shown) == ("f5", "f5")
    assert (keys["pause"].key, keys["pause"].shown) == ("question_mark", "?")
    assert keys["clip"] == next(key for key in KEYS if key.name == "clip")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[keys]\nrestrat = 'r'", "line 2: there is no action 'restrat', did you mean restart?"),
        ("[keys]\npause = 'foo'", "line 2: 'foo' is no key for pause"),
        ("[keys]\npause = 3", "line 2: 3 is no key for pause"),
        ("[keys]\nrestart = 'l'", "line 2: 'l' would be both"),
        ("[keys]\nrestart = 'q'", "line 2: 'q' would be both"),
        ("[keys]\n\nhelp = 'y'", "line 3: 'y' would be both"),
        ("theme = 'pink'", "line 1: theme has to be one of dark, light, contrast, not 'pink'"),
        ("smoothing = 1", "line 1: smoothing has to be one of off, light, strong, not 1"),
        ("colour = 'red'", "line 1: there is no setting 'colour'"),
        ("keys = 1", "line 1: keys has to be a table"),
        ("[keys\n", "tui.toml: Expected"),
        ("theme = ", "Invalid value"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as told:
        load(given(tmp_path, content))
    assert sentence in str(told.value)
    assert "tui.toml" in str(told.value)


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "tui.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot read"):
        load(tmp_path / "tui.toml")


def test_two_keys_can_change_places(tmp_path: Path) -> None:
    settings = load(given(tmp_path, "[keys]\nrestart = 'l'\nlower_lr = 'r'"))
    assert settings.shown("restart") == "l"


def test_names_of_actions_are_plain_and_mean_one_thing_on_a_screen() -> None:
    seen = set()
    for key in KEYS:
        assert key.name.replace("_", "").isalnum()
        for scope in key.scopes:
            assert (scope, key.name) not in seen
            seen.add((scope, key.name))


@pytest.mark.parametrize(("key", "name"), [("?", "question_mark"), ("+", "plus"), ("R", "R"), ("f5", "f5")])
def test_a_character_is_known_by_its_name(key: str, name: str) -> None:
    assert canonical(key) == name


async def test_the_users_keys_are_the_ones_that_work_and_are_shown() -> None:
    settings = Settings(
        {"restart": "f5", "lower_lr": "r", "approve": "A", "undo": "U"}, "optwatch-contrast", "light"
    )
    app = OptwatchApp(recorded.live_run(), clock=lambda: NOW, settings=settings)
    async with app.run_test(size=(160, 50)) as pilot:
        await pilot.pause()
        assert app.theme == "optwatch-contrast"
        assert "smooth light" in text(pilot)
        assert "f5 restart" in text(pilot)
        assert "A approve" in text(pilot).splitlines()[1]
        await pilot.press("l", "a")
        assert isinstance(pilot.app.screen, RunScreen)
        for key, title in (("f5", "restart the optimizer?"), ("r", "scale the learning rate?")):
            await pilot.press(key)
            assert isinstance(pilot.app.screen, ConfirmScreen)
            assert title in text(pilot)
            assert ("U restores the former scale" in text(pilot)) == (key == "r")
            await pilot.press("escape")
        await pilot.press("question_mark")
        assert "f5" in text(pilot)
