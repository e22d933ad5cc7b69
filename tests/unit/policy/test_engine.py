"""Which findings are answered, how, when, and what is taken back."""

import msgspec
import numpy as np
import pytest

from optwatch.policy.engine import Engine
from optwatch.policy.load import parse_rules
from optwatch.policy.rules import Limits, Rules
from optwatch.wire.findings import Cause
from tests.unit.policy.driver import ALLOW, Book, finding, healthy, points


def run_to_event(mode: str = "auto", lr: float = 1e-3, **kwargs: object) -> Book:
    """A healthy run of 300 steps, then two points of a diverged loss."""
    book = Book(Engine(mode), **kwargs)
    book.feed(points(1, healthy(np.arange(1, 300)), lr))
    return book


def names(proposals: list) -> list[str]:
    return [proposal.action for proposal in proposals]


def test_one_bad_event_with_a_steady_lr_is_answered_by_a_restart() -> None:
    book = run_to_event()
    (proposal,) = book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    assert (proposal.action, proposal.args, proposal.finding, proposal.send) == ("restart", {}, 1, True)
    assert "divergence at step 300" in proposal.why


def test_a_risen_lr_is_cut_to_what_it_was_and_restored_when_it_is_back() -> None:
    book = run_to_event()
    proposals = book.feed(points(300, [4.0, 4.2, 4.1], 3e-2), finding())
    assert names(proposals) == ["scale_lr", "restart"]
    assert proposals[0].args == {"factor": pytest.approx(1 / 30)}
    assert book.feed(points(303, [4.0] * 10, 3e-2)) == []
    (undo,) = book.feed(points(313, [2.0] * 5, 1e-3))
    assert (undo.action, undo.undo_of, undo.send) == ("scale_lr", "1", True)
    assert undo.args == {"factor": pytest.approx(30)}
    assert "back" in undo.why
    assert book.feed(points(318, [1.0] * 5)) == []


def test_a_rise_of_the_lr_that_is_already_over_calls_for_no_cut() -> None:
    book = run_to_event()
    lr = np.r_[np.full(20, 3e-2), np.full(10, 1e-3)]
    assert names(book.feed(points(300, np.full(30, 4.0), lr), finding())) == ["restart"]


def test_a_run_that_blows_up_in_its_first_steps_gets_a_tenth_of_the_lr() -> None:
    book = Book(Engine("auto"))
    proposals = book.feed(points(1, [2.3, 5.0, 9.0, 30.0, 80.0]), finding(step=5, onset_step=2))
    assert names(proposals) == ["scale_lr", "restart"]


@pytest.mark.parametrize("kind", ["plateau", "vanishing_gradient", "overfitting", "non_finite"])
def test_what_needs_a_change_in_the_script_is_left_to_the_user(kind: str) -> None:
    book = run_to_event()
    assert book.feed(points(300, healthy(np.arange(300, 400))), finding(kind=kind)) == []


def test_a_loss_that_is_nan_is_beyond_what_the_policy_can_repair() -> None:
    book = run_to_event()
    assert book.feed(points(300, [9.0, np.nan, np.nan, np.nan]), finding()) == []


def test_advise_proposes_once_and_waits() -> None:
    book = run_to_event("advise")
    (proposal,) = book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    assert not proposal.send
    for first in range(303, 1303, 100):
        assert book.feed(points(first, np.full(100, 4.0)), finding(evidence={"x": first})) == []


def test_a_dismissed_proposal_is_not_made_again_for_its_finding() -> None:
    book = run_to_event("advise")
    book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    book.change("1", state="dismissed")
    assert book.feed(points(303, np.full(400, 4.0))) == []
    assert names(book.feed(points(703, [9.0, 9.0, 9.0]), finding(2, step=704, onset_step=703))) != []


def test_an_approved_proposal_is_judged_and_answered_for() -> None:
    book = run_to_event("advise")
    book.feed(points(300, [4.0, 4.2, 4.1], 3e-2), finding())
    for id in ("1", "2"):
        book.change(id, state="applied", step=304, asked_by="policy, approved by ada")
    book.feed(points(303, np.full(300, 4.1), 3e-2))
    assert [outcome.verdict for outcome in book.outcomes.values()] == ["neutral", "neutral"]
    # The cut changed nothing yet, but the LR is still up: it stays, and the policy offers to go on.
    assert (book.commands[2].action, book.commands[2].undo_of) == ("restart", None)
    assert book.commands[2].state == "proposed"


def test_observe_proposes_nothing_and_still_judges_commands_by_hand() -> None:
    book = run_to_event("observe")
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding()) == []
    book.add("restart", {}, step=303)
    book.feed(points(303, healthy(np.arange(303, 510))))
    assert book.outcomes.keys() == {"1"}


def test_the_mode_can_change_in_mid_run() -> None:
    book = run_to_event("observe")
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding()) == []
    book.engine.mode = "auto"
    assert names(book.feed(points(303, [4.0]))) == ["restart"]


def test_allow_has_the_last_word() -> None:
    book = run_to_event()
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding(), allow=()) == []
    assert names(book.feed(points(303, [4.0] * 5, 3e-2), allow=("scale_lr",))) == ["scale_lr"]
    assert names(run_to_event().feed(points(300, [4.0] * 3), finding(), allow=("all",))) == [
        "rollback",
        "clip",
    ]


def test_what_helped_ends_the_trouble() -> None:
    book = run_to_event()
    book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    book.feed(points(303, healthy(np.arange(303, 520))))
    assert book.outcomes["1"].verdict == "helped"
    # The finding was never resolved, and is still not answered again.
    assert book.feed(points(520, healthy(np.arange(520, 1200)))) == []
    # A new one is, from the first rung on.
    again = book.feed(points(1200, [4.0, 4.2, 4.1]), finding(2, step=1202, onset_step=1200))
    assert names(again) == ["restart"]


def test_what_did_not_help_is_followed_by_an_lr_cut_and_then_by_nothing() -> None:
    book = run_to_event()
    book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    asked = []
    for first in range(303, 2303, 20):
        asked += book.feed(points(first, np.full(20, 4.1)))
    assert [(p.action, p.undo_of) for p in asked] == [("scale_lr", None), ("scale_lr", "2")]
    assert asked[0].args == {"factor": 0.5, "ramp": 50}
    assert [outcome.verdict for outcome in book.outcomes.values()] == ["neutral", "neutral"]
    assert "architecture" in book.engine.stopped


def test_a_loss_on_its_way_back_is_not_held_up_by_an_lr_cut() -> None:
    book = run_to_event()
    book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    # Slower than the trial can tell from nothing, but steadily down.
    slope = 4.1 - 1.2 * np.arange(600) / 600 + np.random.default_rng(3).normal(0, 0.02, 600)
    for start in range(0, 600, 20):
        book.feed(points(303 + start, slope[start : start + 20]))
    assert names(book.commands) == ["restart"]
    assert book.outcomes["1"].verdict != "helped"
    for first in range(903, 1203, 20):
        book.feed(points(first, np.full(20, 3.0)))
    assert names(book.commands)[1] == "scale_lr"


def test_a_mark_holds_the_policy_back() -> None:
    book = run_to_event()
    book.engine.mark(299)
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding()) == []
    # What began around the mark was planned, however long it lasts.
    assert book.feed(points(303, np.full(300, 4.0))) == []


def test_a_converged_run_is_left_alone() -> None:
    book = run_to_event()
    converged = finding(7, kind="converged", severity="info")
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding(), converged) == []
    over = msgspec.structs.replace(converged, resolved_step=304)
    assert names(book.feed(points(303, [4.0, 4.0]), over)) == ["restart"]


def test_a_resolved_finding_is_not_answered() -> None:
    book = run_to_event()
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding(resolved_step=302)) == []


def test_no_action_follows_one_by_hand_within_the_cooldown() -> None:
    book = run_to_event()
    book.add("clip", {"max_norm": 1.0}, step=290)
    assert book.feed(points(300, [4.0, 4.2, 4.1]), finding()) == []
    assert book.feed(points(303, np.full(186, 4.0))) == []
    assert names(book.feed(points(489, np.full(2, 4.0)))) == ["restart"]


def test_a_detector_with_a_longer_window_has_a_longer_cooldown() -> None:
    book = run_to_event()
    book.add("clip", {"max_norm": 1.0}, step=290)
    book.feed(points(300, [4.0, 4.2, 4.1]), finding(evidence={"window": 300}, kind="slow_divergence"))
    assert book.feed(points(303, np.full(500, 4.0))) == []
    assert names(book.feed(points(803, np.full(100, 4.0)))) == ["scale_lr"]


def test_the_lr_is_never_brought_under_its_floor() -> None:
    book = run_to_event()
    book.add("scale_lr", {"factor": 0.05}, step=20)
    assert names(book.feed(points(300, [4.0, 4.2, 4.1], 3e-2), finding())) == ["restart"]


def test_the_budget_of_lr_cuts_holds_for_the_run() -> None:
    book = Book(Engine("auto", Rules(limits=Limits(lr_cuts=1), rule=run_to_event().engine.rules.rule)))
    book.feed(points(1, healthy(np.arange(1, 300))))
    assert names(book.feed(points(300, [4.0] * 3, 3e-2), finding())) == ["scale_lr", "restart"]
    book.feed(points(303, healthy(np.arange(303, 900))))
    second = book.feed(points(900, [4.0] * 3, 3e-2), finding(2, step=902, onset_step=900))
    assert names(second) == ["restart"]


def test_restore_refuses_what_is_no_state() -> None:
    for state in (
        {},
        {"memory": {}},
        {"memory": {"failures": "x"}, "history": {}},
        {"memory": 3, "history": 4},
    ):
        with pytest.raises(ValueError, match="not the state"):
            Engine("auto").restore(state)


def test_a_huge_backfill_is_taken_in_one_piece() -> None:
    engine = Engine("auto")
    assert engine.update(points(1, healthy(np.arange(1, 60_001))), [], [], ALLOW) == []
    assert len(msgspec.msgpack.encode(engine.state())) < 40_000


def test_a_slow_recovery_is_left_alone_however_slow_it_has_become() -> None:
    book = run_to_event()
    assert names(book.feed(points(300, [4.0, 4.2, 4.1]), finding())) == ["restart"]
    # Back to the trend like 1 / time: the last hundred steps of it hardly show above the noise.
    steps = np.arange(303, 1300)
    losses = healthy(steps, seed=1) + 3.5 / (1 + (steps - 303) / 60)
    for first in range(0, len(steps), 50):
        part = slice(first, first + 50)
        assert book.feed(points(int(steps[part][0]), losses[part])) == []


def test_a_loss_that_stays_up_gets_a_lower_lr() -> None:
    book = run_to_event()
    book.feed(points(300, [4.0, 4.2, 4.1]), finding())
    noise = np.random.default_rng(2).normal(0, 0.02, 700)
    proposed = [p for at in range(0, 700, 50) for p in book.feed(points(303 + at, 4.0 + noise[at : at + 50]))]
    assert "scale_lr" in names(proposed)


@pytest.mark.parametrize("over", ["lr", "finding"])
def test_a_proposal_whose_reason_is_gone_is_withdrawn(over: str) -> None:
    book = run_to_event("advise")
    book.feed(points(300, [4.0, 4.2, 4.1], 3e-2), finding())
    assert [command.action for command in book.commands] == ["scale_lr", "restart"]
    book.feed(points(303, [4.0] * 5, 3e-2))
    assert book.engine.withdrawals(book.commands) == []
    if over == "lr":
        book.feed(points(308, [2.0] * 5, 1e-3))
        ((number, why),) = book.engine.withdrawals(book.commands)
        assert number == "1"
        assert "back" in why
    else:
        book.feed(points(308, [0.5] * 5, 3e-2), finding(resolved_step=310))
        assert [number for number, _ in book.engine.withdrawals(book.commands)] == ["1", "2"]
    book.change("1", state="dismissed")
    book.change("2", state="dismissed")
    assert book.engine.withdrawals(book.commands) == []


ALL = ("restart", "scale_lr", "clip", "rollback")


def hint(**changes: object) -> object:
    evidence = {"lr": 1e-3, "usual": 1e-4}
    values = {
        "kind": "misconfigured_optimizer",
        "severity": "info",
        "step": 0,
        "onset_step": 0,
        "causes": (Cause("lr_too_high", 1.0, "far above"),),
        "evidence": evidence,
    }
    return finding(9, **values | changes)


def test_where_there_is_a_snapshot_one_bad_event_is_answered_by_going_back() -> None:
    book = run_to_event()
    assert names(book.feed(points(300, [4.0, 4.2, 4.1]), finding(), allow=ALL)) == ["rollback", "clip"]


def test_a_rollback_that_is_refused_leaves_the_finding_to_the_next_rule() -> None:
    book = run_to_event(hold=True)
    assert names(book.feed(points(300, [4.0, 4.2, 4.1]), finding(), allow=ALL)) == ["rollback", "clip"]
    book.change("1", state="refused")
    book.change("2", state="refused")
    assert names(book.feed(points(303, [4.0] * 5), allow=ALL)) == ["restart"]


@pytest.mark.parametrize("loss", [np.nan, 1.0])
def test_what_is_not_finite_goes_back_and_the_second_time_with_a_lower_lr(loss: float) -> None:
    book = run_to_event()
    found = finding(kind="non_finite")
    assert names(book.feed(points(300, [loss] * 3), found, allow=ALL)) == ["rollback"]
    assert names(run_to_event().feed(points(300, [loss] * 3), found)) == []


def test_a_run_goes_back_at_most_as_often_as_the_limits_say() -> None:
    rule = '[[rule]]\nname = "r"\nwhy = "w"\nwhen = { kind = ["divergence"] }\ntimes = 9\n'
    rule = f'[limits]\nfailures = 9\n{rule}do = [{{ action = "rollback" }}]\n'
    book = Book(Engine("auto", parse_rules(rule, "p")))
    book.feed(points(1, healthy(np.arange(1, 300))), allow=ALL)
    asked = 0
    for i in range(6):
        first = 300 + 450 * i
        asked += len(book.feed(points(first, [4.0] * 5), finding(i, step=first, onset_step=first), allow=ALL))
        asked += len(book.feed(points(first + 5, [4.0] * 445), allow=ALL))
    assert asked == 2


def test_an_unusual_lr_and_a_bad_start_begin_anew_with_a_usual_one() -> None:
    book = Book(Engine("auto"))
    assert book.feed(points(1, [2.3, 5.0, 9.0, 3.0] + [2.4] * 30), hint(), allow=ALL) == []  # too early
    proposals = book.feed(points(35, [2.4] * 30), allow=ALL)
    assert names(proposals) == ["scale_lr", "rollback"]
    assert proposals[0].args == {"factor": pytest.approx(0.1 / 3)}
    assert proposals[1].args == {"to_step": 0}


@pytest.mark.parametrize("case", ["it learns", "no hint", "usual LR", "a hint that it is too low"])
def test_a_hint_about_the_lr_alone_is_no_reason_to_act(case: str) -> None:
    book = Book(Engine("auto"))
    losses = healthy(np.arange(1, 400)) if case == "it learns" else np.full(399, 2.4)
    hints = {
        "it learns": [hint()],
        "no hint": [],
        "usual LR": [hint(evidence={"lr": 1e-4, "usual": 1e-3})],
        "a hint that it is too low": [hint(causes=(Cause("lr_too_low", 1.0, "far below"),))],
    }
    assert book.feed(points(1, losses), *hints[case], allow=ALL) == []  # type: ignore[arg-type]


def test_spikes_that_come_back_are_clipped() -> None:
    book = run_to_event()
    spike = {"kind": "loss_spike", "severity": "info"}
    first = finding(1, resolved_step=302, **spike)
    assert book.feed(points(300, [1.0] * 40), first, allow=ALL) == []
    second = finding(2, onset_step=341, step=344, resolved_step=344, **spike)  # seen as it ends
    assert names(book.feed(points(340, [1.0] * 5), second, allow=ALL)) == ["clip"]


def test_an_unusual_lr_of_a_run_that_is_stuck_is_brought_to_a_usual_one() -> None:
    stuck = {"kind": "plateau", "severity": "info"}
    book = run_to_event()
    (cut,) = book.feed(points(300, [1.0] * 5), hint(), finding(**stuck), allow=ALL)
    assert (cut.action, cut.args) == ("scale_lr", {"factor": pytest.approx(0.1 / 3)})
    assert run_to_event().feed(points(300, [1.0] * 5), finding(**stuck), allow=ALL) == []


def test_a_rule_that_does_not_ask_for_unusual_lrs_cuts_by_its_own_factor() -> None:
    rule = '[[rule]]\nname = "r"\nwhy = "w"\nwhen = { kind = ["divergence"] }\n'
    rule += 'do = [{ action = "scale_lr", factor = 0.5 }]\n'
    book = Book(Engine("auto", parse_rules(rule, "p")))
    book.feed(points(1, healthy(np.arange(1, 300))))
    (cut,) = book.feed(points(300, [4.0, 4.2, 4.1]), hint(), finding())
    assert cut.args == {"factor": 0.5}


def test_an_info_is_answered_only_where_a_rule_names_it() -> None:
    stale = (Cause("stale_moments", 0.8, "they stayed"),)
    info = {"kind": "plateau", "severity": "info"}
    assert names(run_to_event().feed(points(300, [1.0] * 5), finding(causes=stale, **info))) == ["restart"]
    assert run_to_event().feed(points(300, [1.0] * 5), finding(**info)) == []
    assert run_to_event().feed(points(300, [4.0] * 5), finding(severity="info")) == []


def test_a_cut_for_an_lr_that_is_still_up_is_not_taken_back_because_it_changed_nothing() -> None:
    book = run_to_event()
    asked = names(book.feed(points(300, [4.0, 4.2, 4.1], 3e-2), finding(), allow=ALL))
    assert asked == ["scale_lr", "rollback"]
    book.feed(points(303, np.full(300, 4.0), 3e-2), allow=ALL)
    assert book.outcomes["1"].verdict == "neutral"
    assert not any(command.undo_of for command in book.commands)
    book.feed(points(603, np.full(50, 4.0), 1e-3), allow=ALL)
    assert "1" in [command.undo_of for command in book.commands]


def test_a_cut_of_an_lr_that_would_be_unusual_again_is_not_taken_back_because_it_changed_nothing() -> None:
    book = run_to_event()
    book.feed(points(300, [4.0, 4.2, 4.1]), hint(), finding(), allow=ALL)
    assert [command.action for command in book.commands] == ["scale_lr"]
    book.feed(points(303, np.full(300, 4.0)), allow=ALL)
    assert book.outcomes["1"].verdict == "neutral"
    assert not any(command.undo_of for command in book.commands)
