"""What is known of a rank is dated by its own clock, however long its messages waited."""

import msgspec
import pytest

from optwatch.daemon.sessions import LONGEST_DELAY, WINDOW, Session, Transit
from tests.peers import BEAT
from tests.unit.daemon.test_ingest import GOOD


def session() -> Session:
    return Session(hello=GOOD, user="user", received=0, acked=0)


def beat(of: Session, step: int, sent: float, now: float) -> None:
    of.take_beat(msgspec.structs.replace(BEAT, session="one", steps=(step,), clock=sent), now)


@pytest.mark.parametrize("apart", [-1e6, 0.0, 1e6])
def test_what_waited_counts_from_when_it_was_sent_whatever_the_clocks_say(apart: float) -> None:
    rank = session()
    beat(rank, 100, 2e6 + 10.0, apart + 10.01)
    assert rank.stepped == pytest.approx(apart + 10.01, abs=1e-6)
    beat(rank, 110, 2e6 + 11.0, apart + 11.81)
    assert rank.stepped == pytest.approx(apart + 11.01, abs=1e-6), "the beat was 0.8 s late"
    rank.advance(0, 118, apart + 12.6)
    assert rank.stepped == pytest.approx(apart + 11.8, abs=1e-6), "and so is what comes after it"
    beat(rank, 120, 2e6 + 13.0, apart + 13.01)
    assert rank.stepped == pytest.approx(apart + 13.01, abs=1e-6)


def test_an_agent_that_does_not_say_its_time_is_taken_to_be_quick() -> None:
    rank = session()
    for now in (1.0, 5.0):
        beat(rank, 1, 0.0, now)
        assert rank.stepped == now


def test_clocks_that_run_apart_do_not_add_up_to_a_delay() -> None:
    transit = Transit()
    slow = [transit.delay(second * 0.9999, float(second)) for second in range(1, 86_400)]
    assert max(slow) < 3 * WINDOW * 1e-4
    transit = Transit()
    assert max(transit.delay(second * 1.0001, float(second)) for second in range(1, 86_400)) == 0.0


def test_a_clock_that_stood_still_is_believed_for_a_while_and_within_bounds() -> None:
    transit = Transit()
    assert transit.delay(100.0, 100.0) == 0.0
    told = [transit.delay(101.0 + second, 4_000.0 + second) for second in range(100)]
    assert max(told) == LONGEST_DELAY
    assert told[-1] == 0.0
