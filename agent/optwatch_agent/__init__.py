"""The agent: hooks in the training loop, and a thread that talks to the daemon."""
