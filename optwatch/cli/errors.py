"""What the user can put right."""


class Wrong(Exception):
    """Wrong use or bad input: one clear sentence, shown without a traceback; exit status 2."""
