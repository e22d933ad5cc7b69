"""What an agent that follows its run is told: each thing once in each state, and all anew after a loss."""

import msgspec
import pytest

from optwatch.daemon.followers import Followers, rows_after
from optwatch.series.timeline import Timeline
from optwatch.wire.findings import Finding
from optwatch.wire.frames import WireError, agent_decoder, daemon_decoder, pack, unpack
from optwatch.wire.messages import MOST_NEWS, Follow, News
from tests.unit.detect.series import points

FOLLOW = Follow(session="s", columns=("loss", "absent"), after=0, seen=0)
FINDING = Finding(
    run="r", id=1, kind="divergence", severity="critical", step=9, onset_step=7, summary="the loss left"
)


def timeline(steps: int) -> Timeline:
    whole = Timeline()
    whole.append(points(loss=[float(step) for step in range(1, steps + 1)]))
    return whole


def test_each_thing_is_told_once_in_each_state() -> None:
    followers = Followers()
    assert not followers
    followers.take(FOLLOW)
    (news,) = followers.news({"s"}, timeline(3), [FINDING], [], 1.0)
    assert (news.columns, news.steps, news.values) == (("loss",), (1, 2, 3), ((1.0,), (2.0,), (3.0,)))
    assert (news.number, news.findings) == (1, (FINDING,))
    assert list(followers.news({"s"}, timeline(9), [FINDING], [], 2.0)) == []  # rows are asked for
    over = msgspec.structs.replace(FINDING, resolved_step=20)
    (news,) = followers.news({"s"}, timeline(9), [over], [], 3.0)
    assert (news.number, news.steps, news.findings) == (2, (), (over,))
    followers.take(msgspec.structs.replace(FOLLOW, after=3, seen=2))
    assert list(followers.news({"s"}, timeline(5), [over], [], 1.2)) == []  # too soon after the last rows
    (news,) = followers.news({"s"}, timeline(5), [over], [], 4.0)
    assert (news.steps, news.findings) == ((4, 5), ())


def test_after_a_loss_all_is_told_anew_and_a_session_that_is_gone_is_told_nothing() -> None:
    followers = Followers()
    followers.take(FOLLOW)
    assert len(list(followers.news({"s"}, timeline(1), [FINDING], [], 1.0))) == 1
    followers.take(FOLLOW)  # it has not seen the first
    (news,) = followers.news({"s"}, timeline(1), [FINDING], [], 2.0)
    assert news.findings == (FINDING,)
    assert list(followers.news({"another"}, timeline(1), [FINDING], [], 1.0)) == []
    assert not followers


def test_many_findings_come_in_parts() -> None:
    followers = Followers()
    followers.take(FOLLOW)
    found = [msgspec.structs.replace(FINDING, id=number) for number in range(MOST_NEWS + 5)]
    told = [
        len(news.findings) for _ in range(3) for news in followers.news({"s"}, timeline(1), found, [], 1.0)
    ]
    assert told == [MOST_NEWS, 5]


def test_rows_are_thinned_out_and_no_column_is_lost_by_it() -> None:
    whole = timeline(499)
    whole.append(points(500, loss=[500.0], grad_norm=[5.0]))
    whole.append(points(501, loss=[float(step) for step in range(501, 1_001)]))
    steps, values = rows_after(whole, ("loss", "grad_norm"), 0)
    assert len(steps) == MOST_NEWS
    assert steps[-1] == 1_000
    assert [norm for _, norm in values if norm is not None] == [5.0]


@pytest.mark.parametrize(
    "news",
    [
        {"number": 1, "columns": ["a"], "steps": [1], "values": []},
        {"number": 1, "columns": ["a"], "steps": [1], "values": [[1.0, 2.0]]},
        {"number": 1, "columns": ["a" * 300]},
        {"number": 1, "steps": [1] * (MOST_NEWS + 1), "values": [[]] * (MOST_NEWS + 1)},
    ],
)
def test_news_that_do_not_fit_are_no_news(news: dict[str, object]) -> None:
    header = msgspec.msgpack.encode({"type": "news", "session": "s", **news})
    with pytest.raises(WireError):
        unpack([header], daemon_decoder)


def test_both_messages_come_through_the_wire() -> None:
    news = News(session="s", number=3, columns=("loss",), steps=(4,), values=((None,),), findings=(FINDING,))
    assert unpack(pack(news), daemon_decoder)[0] == news
    assert unpack(pack(FOLLOW), agent_decoder)[0] == FOLLOW
    with pytest.raises(WireError):
        unpack([msgspec.msgpack.encode({**msgspec.to_builtins(FOLLOW), "after": -1})], agent_decoder)
