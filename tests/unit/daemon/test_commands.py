"""The book of commands: every way a command can go."""

import math

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optwatch.daemon.commands import ATTEMPTS, EXPIRY, FIRST_MARGIN, PATIENCE, Book
from optwatch.daemon.entries import CommandError, Entry
from optwatch.daemon.in_force import LR_FLOOR, MAX_FACTOR
from optwatch.daemon.peers import Peer, obstacle
from optwatch.wire.actions import ACTIONS
from optwatch.wire.messages import Prepare, Report
from tests.wrong_commands import MALFORMED, Asked

ALLOW = ("restart", "scale_lr", "clip")


class Sent:
    """Takes what the book sends."""

    def __init__(self) -> None:
        self.prepares: list[Prepare] = []

    def __call__(self, session: str, prepare: Prepare) -> None:
        assert prepare.session == session
        self.prepares.append(prepare)


def peer(rank: int = 0, **changes: object) -> Peer:
    known = {
        "rank": rank,
        "session": f"s{rank}",
        "fresh": True,
        "steps": (100,),
        "age": 0.0,
        "digests": ("d",),
        "control": "armed",
    }
    return Peer(**{**known, **changes})  # type: ignore[arg-type]


def ask(book: Book, action: str = "scale_lr", now: float = 0.0, **args: object) -> Entry:
    return book.ask(action, args, asked_by="somebody", why="", now=now, allow=ALLOW)


def report(book: Book, prepare: Prepare, state: str, rank: int = 0, **more: object) -> None:
    message = Report(
        session="s",
        seq=1,
        command=prepare.command,
        vote=prepare.vote,
        state=state,  # type: ignore[arg-type]
        steps=(101,) if state == "applied" else (),
        **more,  # type: ignore[arg-type]
    )
    book.report(rank, message, now=1.0)


def go(book: Book, ranks: int, now: float = 0.0, step_time: float = 0.1) -> list[Prepare]:
    sent = Sent()
    book.work([peer(rank) for rank in range(ranks)], ranks, (step_time,), now, sent)
    return sent.prepares


def test_all_ranks_get_one_vote_at_one_step_that_lies_ahead() -> None:
    book = Book("r")
    ask(book, factor=0.5)
    prepares = go(book, 3)
    assert [p.session for p in prepares] == ["s0", "s1", "s2"]
    assert len({p.vote for p in prepares}) == 1
    assert {p.steps for p in prepares} == {(103,)}
    assert go(book, 3) == []  # once


def test_a_command_tells_its_step_and_who_voted() -> None:
    book = Book("r")
    entry = ask(book, factor=0.5)
    prepares = go(book, 2)
    assert (entry.command.due, entry.command.votes) == (103, ())
    report(book, prepares[0], "pending", rank=1)
    assert entry.command.votes == (1,)
    report(book, prepares[0], "applied", rank=0)
    assert entry.command.votes == (0, 1)


def test_the_step_lies_further_ahead_after_each_failed_vote_and_there_is_an_end() -> None:
    book = Book("r")
    entry = ask(book, factor=0.5)
    ahead, votes = [], set()
    for _ in range(ATTEMPTS):
        prepares = go(book, 2, step_time=0.01)
        ahead.append(prepares[0].steps[0] - 100)
        votes.add(prepares[0].vote)
        for rank, prepare in enumerate(prepares):
            report(book, prepare, "aborted", rank, reason="late")
    assert ahead == [30, 60, 120, 240]
    assert len(votes) == ATTEMPTS
    assert go(book, 2) == []
    assert entry.command.state == "expired"
    assert "4 votes failed: late" in entry.command.reason


def test_a_rank_that_refuses_is_heard_before_a_failed_vote_is_held_again() -> None:
    book = Book("r")
    entry = ask(book, "clip", max_norm=1.0)
    prepares = go(book, 2)
    report(book, prepares[0], "aborted", 0, reason="not all ranks were in time")
    assert go(book, 2, now=1.2) == []
    report(book, prepares[1], "refused", 1, reason="not allowed here")
    assert (entry.command.state, entry.command.reason) == ("refused", "rank 1: not allowed here")


def test_what_the_rank_said_that_refuses_stays_when_the_others_are_heard() -> None:
    book = Book("r")
    entry = ask(book, "clip", max_norm=1.0)
    prepares = go(book, 3)
    report(book, prepares[1], "refused", 1, reason="not allowed here")
    report(book, prepares[0], "pending", 0)
    report(book, prepares[2], "aborted", 2, reason="not all ranks were in time")
    assert (entry.command.state, entry.command.reason) == ("refused", "rank 1: not allowed here")


def test_a_failure_is_told_in_the_words_of_the_rank_that_failed() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    prepares = go(book, 2)
    report(book, prepares[1], "failed", 1, reason="the store is lost")
    report(book, prepares[0], "aborted", 0, reason="not all ranks were in time")
    assert (entry.command.state, entry.command.reason) == ("failed", "rank 1: the store is lost")


def test_a_failed_vote_is_held_again_when_a_rank_does_not_say_more() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    first = go(book, 2)
    report(book, first[0], "aborted", 0, reason="late")
    assert entry.command.reason == "late"
    assert go(book, 2, now=2.5) == []  # that ends the vote
    again = go(book, 2, now=2.6)
    assert again[0].vote != first[0].vote
    assert (entry.command.state, entry.command.reason) == ("sent", "")


def test_applied_on_some_ranks_only_is_a_failure_that_says_so() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    prepares = go(book, 2)
    report(book, prepares[0], "applied", 0)
    report(book, prepares[1], "aborted", 1, reason="store lost")
    assert entry.command.state == "failed"
    assert entry.command.reason == "applied on 1 of 2 ranks only: store lost"
    assert entry.command.ranks_applied == (0,)


def test_a_vote_that_failed_is_not_held_again_among_new_processes() -> None:
    book = Book("r")
    entry = ask(book, factor=0.5)
    report(book, go(book, 2)[0], "aborted")
    assert entry.open
    sent = Sent()
    book.work([peer(0), peer(1, session="another")], 2, [0.1], 1.0, sent)
    assert (entry.command.state, sent.prepares) == ("expired", [])
    assert entry.command.reason == "the process of rank 1 ended before it applied it"


def test_a_report_of_an_earlier_vote_changes_nothing() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    first = go(book, 2)
    for rank, prepare in enumerate(first):
        report(book, prepare, "aborted", rank)
    again = go(book, 2)
    report(book, first[0], "applied", 0)
    assert entry.command.ranks_applied == ()
    for rank, prepare in enumerate(again):
        report(book, prepare, "applied", rank)
    assert entry.command.state == "applied"


def test_nobody_answers() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    go(book, 2)
    go(book, 2, now=EXPIRY + 1)
    assert entry.command.state == "expired"


def test_what_lies_with_a_lone_agent_does_not_expire_but_ends_with_its_process() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    (prepare,) = go(book, 1)
    go(book, 1, now=EXPIRY * 10)
    assert entry.command.state == "sent"
    book.work([peer(session="another")], 1, (0.1,), EXPIRY * 11, Sent())
    assert entry.command.state == "expired"
    assert "ended before" in entry.command.reason
    report(book, prepare, "applied")  # it had applied it after all, and that is what counts
    assert entry.command.state == "applied"


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ([peer(0)], "1 of 2 ranks"),
        ([peer(0), peer(1, fresh=False)], "1 of 2 ranks"),
        ([peer(0), peer(1, digests=("other",))], "optimizers of the ranks differ"),
        ([peer(0), peer(1, steps=(102,))], "more than one step apart"),
        ([peer(0), peer(1, steps=())], "not all ranks have reported"),
        ([peer(0), peer(1, control="1 of 2")], "rank 1: 1 of 2"),
    ],
)
def test_what_stands_in_the_way_is_named_and_nothing_is_sent(peers: list[Peer], words: str) -> None:
    assert words in obstacle(peers, 2, (0.1,))
    book, sent = Book("r"), Sent()
    ask(book, "restart")
    book.work(peers, 2, (0.1,), 0.0, sent)
    assert sent.prepares == []


def test_what_is_known_of_a_rank_may_be_old() -> None:
    assert obstacle([peer(0), peer(1, steps=(92,), age=1.0)], 2, (0.1,)) == ""


factors = st.floats(0.2, 4.0)


@given(st.lists(factors | st.just(None), min_size=1, max_size=8), st.data())
def test_the_scale_is_the_product_and_undo_takes_one_factor_out(
    wishes: list[float | None], data: st.DataObject
) -> None:
    book, scale = Book("r"), 1.0
    applied: list[str] = []
    for factor in wishes:
        if factor is not None and scale * factor < LR_FLOOR:
            with pytest.raises(CommandError):
                ask(book, factor=factor)
            continue
        entry = ask(book, reset=True) if factor is None else ask(book, factor=factor)
        report(book, go(book, 1)[0], "applied")
        applied.append(entry.command.id)
        scale = 1.0 if factor is None else scale * factor
        assert math.isclose(book.in_force.lr_scale, scale)
    last = book.entries[applied[-1]]
    assume(isinstance(last.before, float) and last.before / scale <= MAX_FACTOR)
    undo = book.undo(applied[-1], "me", 0.0, ALLOW)
    report(book, go(book, 1)[0], "applied")
    assert undo.command.undo_of == applied[-1]
    assert last.command.state == "undone"
    assert isinstance(last.before, float)
    assert math.isclose(book.in_force.lr_scale, last.before, rel_tol=1e-9)


def test_undoing_a_clip_restores_the_former_one() -> None:
    book = Book("r")
    for args in ({"max_norm": 2.0}, {"max_norm": 1.0}):
        ask(book, "clip", **args)
        report(book, go(book, 1)[0], "applied")
    assert book.undo("2", "me", 0.0, ALLOW).command.args == {"max_norm": 2.0}
    assert book.undo("1", "me", 0.0, ALLOW).command.args == {"off": True}


def test_a_proposal_waits_for_a_person() -> None:
    book = Book("r")
    waiting = book.ask(
        "restart", {}, asked_by="policy", why="w", now=0.0, allow=ALLOW, approved=False, finding=3
    )
    other = book.ask("restart", {}, asked_by="policy", why="w", now=0.0, allow=ALLOW, approved=False)
    assert go(book, 1, now=1e6) == []
    book.approve("1", "ada", 1e6)
    book.dismiss("2", "ada", "")
    assert len(go(book, 1, now=1e6)) == 1
    assert (waiting.command.state, waiting.command.asked_by) == ("sent", "policy, approved by ada")
    assert (other.command.state, other.command.reason) == ("dismissed", "dismissed by ada")
    for again in (book.approve, lambda n, b, t: book.dismiss(n, b, "")):
        with pytest.raises(CommandError, match="not proposed"):
            again("2", "ada", 0.0)


def test_a_book_goes_on_from_what_the_store_kept() -> None:
    book = Book("r")
    ask(book, factor=0.5)
    report(book, go(book, 1)[0], "applied")
    ask(book, "clip", max_norm=1.5)
    report(book, go(book, 1)[0], "applied")
    ask(book, "restart")
    (open_vote,) = go(book, 1)
    kept = [msgspec.msgpack.encode(entry) for entry in book.entries.values()]
    again = Book("r", [msgspec.msgpack.decode(data, type=Entry) for data in kept])
    assert (again.in_force.lr_scale, again.in_force.clip) == (0.5, 1.5)
    sent = Sent()
    again.resend(peer(), 0.0, sent)
    assert [p.vote for p in sent.prepares] == [open_vote.vote]
    report(again, open_vote, "applied")
    assert [c.state for c in again.commands] == ["applied"] * 3


def test_what_stands_in_the_way_is_shown_and_after_a_while_the_command_is_refused() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    apart = [peer(0), peer(1, steps=(102,))]
    book.work(apart, 2, (0.1,), 0.0, Sent())
    assert (entry.command.state, entry.command.reason) == ("sent", "the ranks are more than one step apart")
    book.work(apart, 2, (0.1,), PATIENCE + 0.1, Sent())
    assert (entry.command.state, entry.command.reason) == (
        "refused",
        "the ranks are more than one step apart",
    )


def test_what_stood_in_the_way_is_forgotten_once_it_is_proposed() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    book.work([peer(0)], 2, (0.1,), 0.0, Sent())
    assert entry.command.reason == "1 of 2 ranks are connected"
    go(book, 2, now=PATIENCE - 1)
    assert (entry.command.due, entry.command.world_size, entry.command.reason) == (103, 2, "")


def test_ranks_of_two_incarnations_are_not_asked_together() -> None:
    assert obstacle([peer(0, incarnation=1), peer(1)], 2, (0.1,)) == "1 of 2 ranks are connected"


def test_a_new_process_is_not_sent_the_vote_of_its_predecessor() -> None:
    book = Book("r")
    ask(book, "restart")
    (first, _) = go(book, 2)
    sent = Sent()
    book.resend(peer(0, session="new"), 1.0, sent)
    assert sent.prepares == []
    book.resend(peer(0), 1.0, sent)
    assert sent.prepares == [first]


def test_what_is_sent_again_keeps_its_place_among_the_others() -> None:
    book, sent = Book("r"), Sent()
    for _ in range(3):
        ask(book, factor=0.9)
    prepares = go(book, 2)
    book.resend(peer(1), 1.0, sent)
    assert [p.order for p in sent.prepares] == [p.order for p in prepares if p.session == "s1"] == [1, 2, 3]


def test_the_order_goes_on_after_a_restart_of_the_daemon() -> None:
    book = Book("r")
    ask(book, factor=0.5)
    for _ in range(3):
        for rank, prepare in enumerate(go(book, 2)):
            report(book, prepare, "aborted", rank)
    (last, _) = go(book, 2)
    again = Book("r", list(book.entries.values()))
    ask(again, factor=0.5)
    assert go(again, 2)[0].order > last.order


def test_a_rank_that_says_nothing_is_asked_again() -> None:
    book = Book("r")
    ask(book, "restart")
    prepares = go(book, 2)
    report(book, prepares[0], "pending", 0)
    assert go(book, 2, now=0.5) == []
    assert [p.session for p in go(book, 2, now=60.0)] == ["s1"]


def test_a_command_that_lies_with_the_agents_waits_for_its_step_however_long_a_pause_is() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    for rank, prepare in enumerate(go(book, 2)):
        report(book, prepare, "pending", rank)
    go(book, 2, now=100 * EXPIRY)
    assert entry.command.state == "scheduled"


def test_a_command_ends_with_the_rank_that_it_waits_for() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    for rank, prepare in enumerate(go(book, 2)):
        report(book, prepare, "pending", rank)
    for now in (20.0, 20.0 + EXPIRY / 2, 21.0 + EXPIRY):
        book.work([peer(0), peer(1, fresh=False)], 2, (0.1,), now, Sent())
    assert (entry.command.state, entry.command.reason) == ("expired", "1 of 2 ranks are connected")
    report(book, msgspec.structs.replace(prepare, vote=entry.vote), "aborted", 0)
    assert entry.command.state == "expired", "a failed vote does not wake what is over"


def test_a_command_ends_when_the_job_goes_on_with_fewer_ranks() -> None:
    book = Book("r")
    entry = ask(book, "restart")
    go(book, 2)
    book.work([peer(0)], 1, (0.1,), 1.0, Sent())
    assert entry.command.state == "expired"
    assert entry.command.reason == "the process of rank 1 ended before it applied it"


def test_each_optimizer_gets_its_margin_in_its_own_steps() -> None:
    book, sent = Book("r"), Sent()
    ask(book, factor=0.5)
    peers = [peer(rank, steps=(100, 20), digests=("d", "g")) for rank in range(2)]
    book.work(peers, 2, (0.01, 0.05), 0.0, sent)
    assert {p.steps for p in sent.prepares} == {(130, 26)}


def test_what_a_part_of_the_ranks_has_told_before_a_restart_is_in_force_after_it() -> None:
    book = Book("r")
    entry = ask(book, factor=0.5)
    prepare = go(book, 2)[0]
    report(book, prepare, "applied", rank=1)
    again = Book("r", [entry])
    assert again.in_force.lr_scale == 0.5
    report(again, prepare, "applied", rank=0)
    assert entry.command.state == "applied"
    assert again.in_force.lr_scale == 0.5


def test_the_step_follows_what_is_thought_of_most_ranks() -> None:
    book, sent = Book("r"), Sent()
    ask(book, factor=0.5)
    known = [(92, 0.81), (95, 0.5), (100, 0.04), (97, 0.33), (99, 0.35)]  # 102.5 is the most
    peers = [peer(rank, steps=(step,), age=age) for rank, (step, age) in enumerate(known)]
    book.work(peers, 5, (0.1,), 0.0, sent)
    assert {p.steps for p in sent.prepares} == {(104,)}, "100.3, and 0.3 s"
    book, sent = Book("r"), Sent()
    ask(book, factor=0.5)
    book.work([peer(0), peer(1), peer(2, steps=(101,))], 3, (1.0,), 0.0, sent)
    assert {p.steps for p in sent.prepares} == {(103,)}, "two steps are left to the first of them"


def test_the_margin_follows_what_votes_take_both_ways() -> None:
    book = Book("r")
    assert book.margin == FIRST_MARGIN
    for seconds in (1.0, *[0.1] * 99):
        entry = ask(book, "restart", now=0.0)
        prepare = go(book, 2)[0]
        book.report(
            0,
            Report(session="s", seq=1, command=entry.command.id, vote=prepare.vote, state="pending"),
            seconds,
        )
    assert book.margin == FIRST_MARGIN, "one in a hundred may be slower"
    for _ in range(2):
        entry = ask(book, "restart", now=0.0)
        prepare = go(book, 2)[0]
        book.report(
            0, Report(session="s", seq=1, command=entry.command.id, vote=prepare.vote, state="pending"), 1.0
        )
    assert book.margin == 2.0


@given(st.lists(MALFORMED, min_size=1, max_size=8))
def test_what_is_malformed_is_refused_at_the_door(asked: list[Asked]) -> None:
    book = Book("r")
    for action, args in asked:
        with pytest.raises(CommandError) as refused:
            book.ask(action, args, asked_by="somebody", why="", now=0.0, allow=tuple(ACTIONS))
        assert len(str(refused.value)) > 10
    assert book.entries == {}
    assert book.changed == {}


@pytest.mark.parametrize(
    ("action", "args", "back"),
    [
        ("scale_lr", {"factor": 0.25, "ramp": 9}, ("scale_lr", {"reset": True})),
        ("clip", {"max_norm": 2.0}, ("clip", {"off": True})),
        ("perturb", {"std": 0.1}, ("perturb", {"off": True})),
        ("perturb", {"std": 0.1, "target": "param"}, "parameters are changed for good"),
        ("perturb", {"off": True}, "give the noise anew"),
        ("restart", {}, "the moments it zeroed are gone"),
        ("snapshot", {}, "there is nothing to undo"),
        ("rollback", {"to_step": 3}, "what it put away was not kept"),
        ("stop", {}, "the script has been told"),
    ],
)
def test_every_action_is_taken_back_or_it_is_said_why_not(
    action: str, args: dict[str, object], back: tuple[str, dict[str, object]] | str
) -> None:
    book, sent, allow = Book("r"), Sent(), tuple(ACTIONS)
    book.ask(action, args, asked_by="somebody", why="", now=0.0, allow=allow)
    book.work([peer()], 1, [0.1], 0.0, sent)
    report(book, sent.prepares[0], "applied")
    if isinstance(back, str):
        with pytest.raises(CommandError, match=back):
            book.undo("1", "me", 1.0, allow)
        return
    undo = book.undo("1", "me", 1.0, allow).command
    assert (undo.action, undo.args, undo.asked_by, undo.undo_of) == (*back, "me", "1")
    assert undo.why == f"undo of {action} (1)"
    book.work([peer()], 1, [0.1], 1.0, sent)
    report(book, sent.prepares[1], "applied")
    assert book.entries["1"].command.state == "undone"
