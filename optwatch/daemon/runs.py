"""Runs: all that this daemon knows, the newest in full, the others loaded when somebody asks."""

import time

import msgspec

from optwatch.daemon.head import Head, find_run, new_head
from optwatch.daemon.history import History
from optwatch.daemon.run import Run
from optwatch.daemon.store import Store
from optwatch.policy.load import DEFAULT
from optwatch.policy.rules import Rules
from optwatch.wire.messages import Hello
from optwatch.wire.requests import Mode

KEPT_LOADED = 900.0
"""Seconds that a run without live ranks stays in memory after it was last asked for."""


class Runs:
    """The runs by id. A name stands for the newest run that has it."""

    def __init__(self, store: Store, mode: Mode, rules: Rules = DEFAULT) -> None:
        self.mode = mode
        self._rules = rules
        self.history = History(store.reader)
        self._store = store
        self._used: dict[str, float] = {}
        rows = store.reader.execute("SELECT head FROM run").fetchall()
        heads = [msgspec.msgpack.decode(data, type=Head) for (data,) in rows]
        self.by_id = {head.run: Run(head, store, loaded=False, rules=rules) for head in heads}

    def set_rules(self, rules: Rules) -> None:
        """From now on all runs follow this policy."""
        self._rules = rules
        for run in self.by_id.values():
            run.diagnosis.set_rules(rules)

    def for_agent(self, hello: Hello) -> Run:
        """The run that an agent belongs to, made or loaded where it is not there."""
        run = self.by_id.get(hello.run)
        if run is None:
            run = Run(new_head(hello, self.mode), self._store, loaded=True, rules=self._rules)
            self.by_id[hello.run] = run
        run.load(self.history)
        self._used[hello.run] = time.monotonic()
        return run

    def find(self, wanted: str) -> Run:
        """The run that a client means, loaded.

        Raises:
            UnknownRun: a sentence that names the runs there are.
        """
        run = find_run(list(self.by_id.values()), wanted)
        run.load(self.history)
        self._used[run.head.run] = time.monotonic()
        return run

    def unload(self, now: float) -> None:
        """Let go of the series of runs that are over and that nobody has asked about for a while."""
        for name, used in list(self._used.items()):
            run = self.by_id[name]
            if now - used > KEPT_LOADED and not run.touched and not run.live(now):
                run.checkpoint()
                run.save_head()
                self.by_id[name] = Run(run.head, self._store, loaded=False, rules=self._rules)
                del self._used[name]

    def idle(self, name: str) -> bool:
        """Whether nobody is connected to a run, or has looked at it for a while."""
        run = self.by_id.get(name)
        return run is None or not run.loaded

    def drop(self, name: str) -> None:
        """Know no more of an idle run."""
        self.by_id.pop(name, None)

    def note_heard(self, now: float) -> None:
        """Note in the store that the runs with live ranks are heard of. `now`: monotonic."""
        for run in self.by_id.values():
            if run.loaded and run.live(now):
                run.save_head()

    def newest_first(self) -> list[Run]:
        return sorted(self.by_id.values(), key=lambda run: run.head.started, reverse=True)
