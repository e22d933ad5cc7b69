"""Several daemons behind one address list: which of them has a run."""

from optwatch.client.client import Client
from optwatch.client.errors import DaemonError, DaemonUnreachable
from optwatch.wire.places import AddressError, find_daemon, find_daemons
from optwatch.wire.requests import RunInfo

_PATIENCE = 2.0
_ID = 32
"""Characters of a run's id."""
_LEAST = 4
"""Characters of the beginning of an id."""


def all_runs(address: str | None = None) -> tuple[list[tuple[RunInfo, str]], list[str]]:
    """The runs of all daemons, each with its daemon's address, the newest first; and why a daemon told none.

    Raises:
        DaemonUnreachable: no daemon of them answers, or an address cannot be parsed.
    """
    found: list[tuple[RunInfo, str]] = []
    problems = []
    addresses = _addresses(address)
    for each in addresses:
        try:
            with Client(each, timeout=_PATIENCE) as client:
                found += [(info, each) for info in client.runs()]
        except DaemonError as error:
            problems.append(str(error))
    if len(problems) == len(addresses):
        raise DaemonUnreachable(problems[0])
    return sorted(found, key=lambda pair: pair[0].started, reverse=True), problems


def daemon_of(wanted: str, address: str | None = None) -> str:
    """The daemon that has a run, which is named as a daemon takes it: a name, an id, the beginning of one.

    Raises:
        DaemonUnreachable: no daemon has it, and perhaps one of them does not answer.
    """
    addresses = _addresses(address)
    if len(addresses) == 1:
        return addresses[0]
    if len(wanted) == _ID and set(wanted) <= set("0123456789abcdef"):
        return find_daemon(address, wanted)
    runs, problems = all_runs(address)
    for info, each in runs:
        if info.name == wanted:
            return each
    for info, each in runs:
        if len(wanted) >= _LEAST and info.run.startswith(wanted):
            return each
    names = ", ".join(dict.fromkeys(info.name for info, _ in runs[:10])) or "none yet"
    told = "".join(f"; {problem}" for problem in problems)
    raise DaemonUnreachable(
        f"there is no run {wanted!r} at any of {len(addresses)} daemons: there are {names}{told}"
    )


def _addresses(address: str | None) -> tuple[str, ...]:
    try:
        return find_daemons(address)
    except AddressError as error:
        raise DaemonUnreachable(str(error)) from None
