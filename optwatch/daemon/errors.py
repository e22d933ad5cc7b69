"""Why a daemon cannot start."""


class StartError(Exception):
    """What the user can put right; one sentence that says what and how."""
