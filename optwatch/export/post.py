"""Post: sends messages through Apprise.

Importing this module needs the package `apprise`; whoever does says so in words. Its URLs are secrets:
nothing here ever tells one.
"""

import logging
import re
import urllib.parse

import apprise

from optwatch.export.notices import Message


class Post:
    """The way to one target."""

    def __init__(self, url: str) -> None:
        """`url`: an Apprise URL.

        Raises:
            ValueError: Apprise cannot use it; the sentence does not tell the URL.
        """
        self._secrets = _secrets(url)
        self._heard = _Heard()
        theirs = logging.getLogger("apprise")
        theirs.propagate = False  # what it says may hold parts of the URL
        self._apprise = apprise.Apprise()
        if not self._apprise.add(url):
            scheme = re.match(r"\s*([a-z0-9]+)://", url)
            said = f"begins with {scheme[1]}://" if scheme else "has no scheme such as mailto://"
            raise ValueError(f"Apprise cannot use its URL, which {said}")
        self.service = str(self._apprise[0].service_name)
        """The kind of service, such as "Slack"."""

    def send(self, message: Message) -> str:
        """Send a message; "" where it was taken, else why not, in Apprise's words without secrets."""
        theirs = logging.getLogger("apprise")
        self._heard.lines.clear()
        theirs.addHandler(self._heard)
        try:
            if self._apprise.notify(message.body, title=message.title, body_format="markdown"):
                return ""
        except Exception as error:  # noqa: BLE001  a plugin's own fault must not end the others
            self._heard.lines.append(f"{type(error).__name__}: {error}")
        finally:
            theirs.removeHandler(self._heard)
        reason = "; ".join(self._heard.lines) or "Apprise gives no reason"
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return " ".join(reason.split())[:500]


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _secrets(url: str) -> list[str]:
    """The parts of a URL that may be secret: all but its scheme and its options' names, the longest first."""
    rest = re.sub(r"[?&][^=&]*=", "/", url.partition("://")[2])
    parts = {part for text in (rest, urllib.parse.unquote(rest)) for part in re.split(r"[:/@,;]+", text)}
    return sorted((part for part in parts if len(part) >= 4), key=len, reverse=True)
