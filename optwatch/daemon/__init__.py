"""The daemon: sockets, identity, runs, the store, and views of them."""
