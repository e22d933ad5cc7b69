"""The thread that talks to the job's store, so that the training thread never does.

It sleeps while no vote is open. After the store's first error it falls silent for good: the store of a
job that is ending answers every call with pages of warnings.
"""

import queue
import threading
from collections.abc import Callable
from time import monotonic

from optwatch_agent import vote
from optwatch_agent.vote import Store, Verdict

SETTLE_TIMEOUT = 2.0
"""Seconds that the training thread waits for a verdict at the step itself."""

_POLL = (0.1, 1.0)
"""Seconds between two looks at the open votes: at first, and after a while."""


Job = Callable[[Store], None]


class Ballot:
    """One vote as this rank knows it. `verdict` is None until it is known here."""

    def __init__(self, vote: str, n: int) -> None:
        self.vote = vote
        self.n = n
        self.verdict: Verdict | None = None
        self._known = threading.Event()

    def know(self, verdict: Verdict) -> None:
        """Keep a verdict. Called by the arbiter's thread only."""
        self.verdict = verdict
        self._known.set()

    def give_up(self) -> None:
        """Wake whoever waits: there will be no verdict."""
        self._known.set()

    def wait(self, timeout: float) -> Verdict | None:
        """The verdict, or None if there is none after `timeout` seconds or ever."""
        self._known.wait(timeout)
        return self.verdict


class Arbiter:
    """Casts votes and learns verdicts in a thread of its own.

    `connect` opens the store; it is called in the thread, since it may take seconds, and may raise.
    """

    def __init__(self, connect: Callable[[], Store]) -> None:
        self.lost = ""
        """Why verdicts cannot be had any more; "" while they can."""
        self.ready = False
        """Whether the store is connected."""
        self._connect = connect
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: list[Ballot] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="optwatch-votes", daemon=True)
        self._thread.start()

    def favour(self, ballot: Ballot) -> None:
        """Vote yes, soon. The command has to be pending on this rank before this is called."""

        def cast(store: Store) -> None:
            if ballot.verdict is None and (verdict := vote.favour(store, ballot.vote, ballot.n)):
                ballot.know(verdict)

        self._ask(cast, ballot)

    def oppose(self, ballot: Ballot) -> None:
        """Vote no, soon."""
        self._ask(lambda store: ballot.know(vote.oppose(store, ballot.vote)), ballot)

    def settle(self, ballot: Ballot, timeout: float = SETTLE_TIMEOUT) -> Verdict | None:
        """The verdict, now, at the step of the command: ABORT unless all ranks were in favour.

        One round trip to the store where the verdict is not known yet. None: the store did not answer
        within `timeout` seconds, and other ranks may see a COMMIT that this one cannot; `lost` says so.
        """
        if ballot.verdict is None:
            self.oppose(ballot)
            if ballot.wait(timeout) is None:
                self._lose("the job's store did not answer at the step of a command")
        return ballot.verdict

    def call(self, job: Job) -> None:
        """Do something else with the store in the thread, before what is asked later."""
        self._ask(job)

    def close(self, timeout: float) -> None:
        """End the thread; after `timeout` seconds at the latest it is left behind."""
        self._jobs.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _ask(self, job: Job, ballot: Ballot | None = None) -> None:
        with self._lock:
            if not self.lost:
                if ballot is not None and ballot not in self._open:
                    self._open.append(ballot)
                self._jobs.put(job)
                return
        if ballot is not None:
            ballot.give_up()

    def _lose(self, why: str) -> None:
        with self._lock:
            self.lost = self.lost or why
            abandoned, self._open = self._open, []
        for ballot in abandoned:
            ballot.give_up()
        self._jobs.put(None)

    def _run(self) -> None:
        try:
            store = self._connect()
            self.ready = True
            looked, pause = monotonic(), _POLL[0]
            while not self.lost:
                job = self._next(max(0.0, looked + pause - monotonic()) if self._open else None)
                if job is None:
                    return
                job(store)
                if job is not _nothing:
                    pause = _POLL[0]
                if monotonic() - looked >= pause:
                    self._look(store)
                    looked, pause = monotonic(), min(2 * pause, _POLL[1])
        except Exception as error:  # noqa: BLE001 - stores raise what their backends raise
            self._lose(f"the job's store failed: {_first_line(error)}")

    def _next(self, timeout: float | None) -> Job | None:
        try:
            return self._jobs.get(timeout=timeout)
        except queue.Empty:
            return _nothing

    def _look(self, store: Store) -> None:
        """Ask the store for the verdicts that are still open."""
        for ballot in tuple(self._open):
            if verdict := vote.peek(store, ballot.vote):
                ballot.know(verdict)
        self._forget_settled()

    def _forget_settled(self) -> None:
        with self._lock:
            self._open = [ballot for ballot in self._open if ballot.verdict is None]


def _nothing(store: Store) -> None:
    """What there is to do when it is time to look at the open votes."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
