"""Attempts: which incarnation of its run a process belongs to.

Launchers count the restarts after a failure, but not those after nodes joined or left (torchrun), and a
script that is started again by hand in one allocation counts nothing. What tells all of them is that
another process takes a rank over, or that the job has another size.
"""

from optwatch.daemon.head import Head
from optwatch.wire.messages import Hello


def incarnation_of(hello: Hello, head: Head, former: Hello | None) -> int:
    """The incarnation of a process that is new to a run.

    Args:
        hello: What it says of itself; its launcher's count is the least that it can be.
        head: The run as it stands.
        former: The process that had this rank before, with the incarnation found for it.
    """
    newest = head.incarnation
    if hello.incarnation > newest:
        return hello.incarnation
    if former is not None and former.started > hello.started:  # it was only slow to say hello
        return min(hello.incarnation, former.incarnation)
    resized = hello.world_size != head.world_size
    replaces = (
        former is not None
        and former.incarnation == newest
        and (former.host, former.pid) != (hello.host, hello.pid)
    )
    return newest + 1 if resized or replaces else newest
