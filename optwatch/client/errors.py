"""What can go wrong between a client and its daemon; each says in one sentence what to do."""


class DaemonError(Exception):
    """Something a daemon said, or did not say."""


class DaemonUnreachable(DaemonError):
    """No daemon answers there, or it does not let this client in."""


class DaemonStopped(DaemonError):
    """The daemon said that it ends."""


class Refusal(DaemonError):
    """The daemon refused a request. `code`: unknown_run, bad_request, forbidden, unavailable."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
