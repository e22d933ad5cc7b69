"""Two protocols that look right and are not, in the place of the agent's own.

The same bad conditions that the vote in the job's store comes through have to find both of them out.
"""

import msgspec

from optwatch.wire.actions import parse_action
from optwatch.wire.messages import Prepare
from optwatch_agent.arbiter import Ballot
from optwatch_agent.control import Control, Outcome, Pending
from optwatch_agent.vote import Verdict
from tests.distributed.link import VERDICT


class OnReceipt(Control):
    """What has arrived is applied at the next step, as on a rank that is alone."""

    def take(self, prepare: Prepare) -> None:
        if prepare.session == self._session and not self._had(prepare.vote):
            self._votes.append(prepare.vote)
            alone = msgspec.structs.replace(prepare, n=1, steps=())
            self._put(Pending(alone, parse_action(prepare.action, prepare.args)))


class DaemonDecides(Control):
    """Two phases over the daemon's messages. At the step, no verdict is taken for a no."""

    def take(self, prepare: Prepare) -> None:
        if prepare.session != self._session:
            return
        if prepare.action == VERDICT:
            for pending in self.pending:
                if pending.prepare.vote == prepare.vote and pending.ballot is not None:
                    pending.ballot.know(Verdict.COMMIT)
            return
        if self._had(prepare.vote):
            return
        self._votes.append(prepare.vote)
        pending = Pending(
            prepare, parse_action(prepare.action, prepare.args), ballot=Ballot(prepare.vote, prepare.n)
        )
        self._put(pending)
        if any(now >= due for now, due in zip(self._steps(), prepare.steps, strict=True)):
            self._drop(pending)
            self.outcomes.append(Outcome(prepare, "aborted", reason="late"))
        else:
            self.outcomes.append(Outcome(prepare, "pending"))

    def _settled(self, pending: Pending, timeout: float = 0.0) -> bool:
        if pending.applied or (pending.ballot is not None and pending.ballot.verdict is Verdict.COMMIT):
            return True
        self._drop(pending)
        self.outcomes.append(Outcome(pending.prepare, "aborted", reason="no verdict"))
        return False


CONTROLS: dict[str, type[Control]] = {
    "vote": Control,
    "on_receipt": OnReceipt,
    "daemon_decides": DaemonDecides,
}
