"""Forms for the arguments of actions, and what is said before anything is done."""

from typing import Any, Literal

import msgspec
import pytest

from optwatch.client.effects import effects
from optwatch.wire import actions
from optwatch.wire.actions import ACTIONS
from optwatch.wire.requests import Act, AddMark, Approve, Dismiss
from optwatch_tui import acting, forms
from optwatch_tui.feed import LinkChanged, RunChanged, RunsChanged
from optwatch_tui.screens.choose import ChooseScreen
from optwatch_tui.screens.confirm import ConfirmScreen
from optwatch_tui.screens.run import RunScreen
from tests.unit.tui import recorded
from tests.unit.tui.recorded import RecordedFeed
from tests.unit.tui.test_screens import RUN, asked, shown, text


class Shake(msgspec.Struct, frozen=True, tag="shake", tag_field="action", forbid_unknown_fields=True):
    """An action that came later."""

    target: Literal["grad", "param"]
    std: actions.Positive = 1e-3


@pytest.fixture
def _later_action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIONS, "shake", Shake)  # type: ignore[arg-type]


@pytest.mark.parametrize("action", list(ACTIONS))
def test_every_argument_of_every_action_is_in_its_form(action: str) -> None:
    assert [field.name for field in forms.fields(action)] == list(ACTIONS[action].__struct_fields__)
    for field in forms.fields(action):
        assert field.options or field.hint


@pytest.mark.parametrize(
    ("action", "args"),
    [
        ("restart", {"moments": "first", "warmup": 20}),
        ("scale_lr", {"factor": 0.25, "ramp": 5}),
        ("scale_lr", {"reset": True}),
        ("clip", {"max_norm": "auto"}),
        ("clip", {"max_norm": 0.42}),
        ("clip", {"off": True}),
    ],
)
def test_a_form_says_and_reads_the_same(action: str, args: dict[str, Any]) -> None:
    assert forms.read(action, forms.texts(action, args)) == args


@pytest.mark.parametrize(
    ("action", "said", "words"),
    [
        ("scale_lr", {"factor": "half"}, "factor is wrong"),
        ("scale_lr", {"factor": "-1"}, "factor is wrong"),
        ("scale_lr", {"factor": "", "reset": "no"}, "needs either a factor"),
        ("scale_lr", {"factor": "0.5", "reset": "yes"}, "needs either a factor"),
        ("clip", {"max_norm": "0"}, "max_norm is wrong"),
        ("restart", {"warmup": "1.5"}, "warmup is wrong"),
        ("restart", {"warmup": "-1"}, "warmup is wrong"),
    ],
)
def test_a_wrong_argument_is_named(action: str, said: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forms.read(action, said)


def test_every_action_says_what_it_changes_where_from_when_and_the_way_back() -> None:
    snapshot = recorded.snapshot()
    for action in ACTIONS:
        question = acting.preview(action, snapshot, "u")
        for choice in question.choices:
            labels = [label for label, _ in question.facts(choice.request)]
            assert labels[0] == "changes"
            assert labels[-3:] == ["on", "from", "to undo"]
            assert "optimizer" in labels


def test_the_learning_rate_is_told_from_and_to() -> None:
    facts = dict(effects("scale_lr", {"factor": 0.1, "ramp": 50}, recorded.snapshot().status, "u"))
    assert facts["changes"] == "the LR scale: × 0.5 → × 0.05, over 50 steps"
    assert facts["learning rate"].startswith("1.5e-4 → 1.5e-5")


@pytest.mark.parametrize("key", ["a", "d"])
async def test_a_proposal_that_goes_while_it_is_asked_about_is_offered_no_more(key: str) -> None:
    model = recorded.model()
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    async with shown(feed) as pilot:
        await pilot.press(key)
        assert "y do it" in text(pilot)
        gone = msgspec.structs.replace(recorded.COMMANDS[1], state="dismissed", reason="asked elsewhere")
        model.update(*recorded.delta(11, 18_421, 18_430, commands=(gone,)))
        pilot.app.post_message(RunChanged(model.snapshot()))
        await pilot.pause()
        assert "this proposal is no longer open, it is dismissed: asked elsewhere" in text(pilot)
        assert "do it" not in text(pilot)
        await pilot.press("y", "enter")
        assert asked(pilot) == []
        await pilot.press("escape")
        assert isinstance(pilot.app.screen, RunScreen)


async def test_the_step_in_a_question_moves_with_the_run() -> None:
    model = recorded.model()
    feed = RecordedFeed(LinkChanged(recorded.LIVE), RunsChanged(recorded.RUNS), RunChanged(model.snapshot()))
    async with shown(feed) as pilot:
        await pilot.press("a")
        assert "a few steps after 18,420" in text(pilot)
        model.update(*recorded.delta(11, 18_421, 18_470))
        pilot.app.post_message(RunChanged(model.snapshot()))
        await pilot.pause()
        assert "a few steps after 18,470" in text(pilot)
        await pilot.press("y")
        assert asked(pilot) == [Approve(RUN, "2")]


async def test_an_argument_is_typed_and_sent_as_typed() -> None:
    async with shown() as pilot:
        await pilot.press("l", "tab", *["backspace"] * 3, *"0.25", "tab", "backspace", *"40")
        assert "× 0.5 → × 0.125, over 40 steps" in text(pilot)
        await pilot.press("enter")
        (request,) = asked(pilot)
        assert isinstance(request, Act)
        assert request.args == {"factor": 0.25, "ramp": 40}


async def test_what_is_wrong_is_said_and_cannot_be_sent() -> None:
    async with shown() as pilot:
        await pilot.press("l", "tab", "x", "enter")
        assert isinstance(pilot.app.screen, ConfirmScreen)
        assert "factor is wrong" in text(pilot)
        assert asked(pilot) == []
        await pilot.press("backspace", "enter")
        (request,) = asked(pilot)
        assert isinstance(request, Act)
        assert request.args == {"factor": 0.5}


async def test_a_word_is_chosen_with_the_arrow_keys() -> None:
    async with shown() as pilot:
        await pilot.press("r", "tab", "right", "right")
        assert "the second moment goes to zero" in text(pilot)
        await pilot.press("left", "y")
        (request,) = asked(pilot)
        assert isinstance(request, Act)
        assert request.args == {"moments": "first"}


async def test_a_proposal_is_dismissed_in_ones_own_words() -> None:
    async with shown() as pilot:
        await pilot.press("d", "tab", *"by design", "enter")
        assert asked(pilot) == [Dismiss(RUN, "2", "by design")]


async def test_a_step_is_marked_with_a_text() -> None:
    async with shown() as pilot:
        await pilot.press("M", "enter")
        assert "a mark needs a text" in text(pilot)
        await pilot.press(*"stage 2", "enter")
        assert asked(pilot) == [AddMark(RUN, "stage 2")]


@pytest.mark.usefixtures("_later_action")
async def test_an_action_that_comes_later_has_its_place_and_form_by_itself() -> None:
    async with shown() as pilot:
        await pilot.press("x")
        assert isinstance(pilot.app.screen, ChooseScreen)
        assert "An action that came later." in text(pilot)
        assert "does not allow shake" in text(pilot)
        await pilot.press("end", "enter", "y")
        assert "shake" in text(pilot)
        assert asked(pilot) == []  # it needs a target
        await pilot.press("space", "tab", *["backspace"] * 5, *"0.5", "enter")
        (request,) = asked(pilot)
        assert isinstance(request, Act)
        assert (request.action, request.args) == ("shake", {"target": "grad", "std": 0.5})


@pytest.mark.usefixtures("_later_action")
async def test_the_palette_has_every_action() -> None:
    async with shown() as pilot:
        commands = [each.title for each in pilot.app.get_system_commands(pilot.app.screen)]
        assert {"restart", "lower LR", "clip", "shake", "mark", "approve", "dismiss", "undo"} <= set(commands)


@pytest.mark.parametrize("key", ["x", "M"])
async def test_read_only_has_none_of_it(key: str) -> None:
    async with shown(readonly=True) as pilot:
        await pilot.press(key)
        assert isinstance(pilot.app.screen, RunScreen)
        assert "read-only: started with --readonly" in text(pilot)


async def test_read_only_shows_the_keys_as_off_and_says_why() -> None:
    async with shown(readonly=True, size=(120, 130)) as pilot:
        assert "off: read-only" in text(pilot).splitlines()[-1]
        await pilot.press("question_mark")
        assert text(pilot).count("(off: read-only)") == 9


async def test_the_votes_are_told_while_they_come() -> None:
    command = msgspec.structs.replace(
        recorded.COMMANDS[1], state="scheduled", due=18_430, votes=(0, 2), why=""
    )
    async with shown(recorded.live_run(commands=(command,))) as pilot:
        assert "scheduled at 18,430, votes 2 of 4" in text(pilot).splitlines()[1]
