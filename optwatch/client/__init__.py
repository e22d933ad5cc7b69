"""How clients talk to a daemon: find it, ask it, follow it."""
