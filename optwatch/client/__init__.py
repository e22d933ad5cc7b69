"""The client library: how the TUI, the CLI and exporters talk to a daemon."""

from optwatch.client.client import Client
from optwatch.client.errors import DaemonError, DaemonStopped, DaemonUnreachable, Refusal
from optwatch.client.follower import Follower

__all__ = ["Client", "DaemonError", "DaemonStopped", "DaemonUnreachable", "Follower", "Refusal"]
