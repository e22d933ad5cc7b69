"""Hosts in network namespaces, on one switch, each with a link that can be cut.

Needs root, and the right to make network namespaces.
"""

import itertools
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

_numbers = itertools.count()


def permitted() -> str:
    """Why there can be no hosts here, "" where there can."""
    probe = f"optwatch-{os.getpid()}-probe"
    try:
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
        if made.returncode == 0:
            linked = ip(probe, "link", "add", "one", "type", "veth", "peer", "name", "two", check=False)
            subprocess.run(["ip", "netns", "del", probe], capture_output=True)
            return linked
    except FileNotFoundError:
        return "there is no ip command"
    return made.stderr.strip() or "ip netns add is not permitted"


def ip(namespace: str, *arguments: str, check: bool = True) -> str:
    """Run `ip` in a namespace; what it complains of."""
    done = subprocess.run(["ip", "-n", namespace, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.stderr.strip() if done.returncode else ""


class Hosts:
    """So many hosts, 10.77.0.1 and on, until the end of a `with` block."""

    def __init__(self, count: int) -> None:
        self._prefix = f"optwatch-{os.getpid()}-{next(_numbers)}"
        self._count = count
        self._switch = f"{self._prefix}-switch"

    def __enter__(self) -> Self:
        for name in (self._switch, *map(self.name, range(self._count))):
            subprocess.run(["ip", "netns", "add", name], check=True)
            ip(name, "link", "set", "lo", "up")
        ip(self._switch, "link", "add", "bridge", "type", "bridge")
        ip(self._switch, "link", "set", "bridge", "up")
        for host in range(self._count):
            port, name = f"port{host}", self.name(host)
            ip(self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip(self._switch, "link", "set", port, "master", "bridge", "up")
            ip(name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip(name, "link", "set", "eth0", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in (self._switch, *map(self.name, range(self._count))):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """A command as it is run on a host."""
        return ["ip", "netns", "exec", self.name(host), *command]

    def cut(self, host: int) -> None:
        """A host's link is down: nobody is told, packets go nowhere."""
        ip(self._switch, "link", "set", f"port{host}", "down")

    def heal(self, host: int) -> None:
        ip(self._switch, "link", "set", f"port{host}", "up")

    def name(self, host: int) -> str:
        """The network namespace of a host."""
        return f"{self._prefix}-{host}"
