"""Runs: all that this daemon knows, the newest in full, the others loaded when somebody asks."""

import msgspec

from optwatch.daemon.history import History
from optwatch.daemon.run import Head, Run, find_run, new_head
from optwatch.daemon.store import Store
from optwatch.policy.load import DEFAULT
from optwatch.policy.rules import Rules
from optwatch.wire.messages import Hello
from optwatch.wire.requests import Mode


class Runs:
    """The runs by id. A name stands for the newest run that has it."""

    def __init__(self, store: Store, mode: Mode, rules: Rules = DEFAULT) -> None:
        self.mode = mode
        self._rules = rules
        self.history = History(store.reader)
        self._store = store
        rows = store.reader.execute("SELECT head FROM run").fetchall()
        heads = [msgspec.msgpack.decode(data, type=Head) for (data,) in rows]
        self.by_id = {head.run: Run(head, store, loaded=False, rules=rules) for head in heads}

    def for_agent(self, hello: Hello) -> Run:
        """The run that an agent belongs to, made or loaded where it is not there."""
        run = self.by_id.get(hello.run)
        if run is None:
            run = Run(new_head(hello, self.mode), self._store, loaded=True, rules=self._rules)
            self.by_id[hello.run] = run
        run.load(self.history)
        return run

    def find(self, wanted: str) -> Run:
        """The run that a client means, loaded.

        Raises:
            LookupError: a sentence that names the runs there are.
        """
        run = find_run(list(self.by_id.values()), wanted)
        run.load(self.history)
        return run

    def newest_first(self) -> list[Run]:
        return sorted(self.by_id.values(), key=lambda run: run.head.started, reverse=True)
