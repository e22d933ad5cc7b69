"""The agent: hooks in the training loop, and a thread that talks to the daemon."""

from optwatch_agent.attach import attach as attach
from optwatch_agent.watch import Watch as Watch
