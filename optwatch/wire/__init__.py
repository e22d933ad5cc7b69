"""The contract: what agents, the daemon and its clients say to one another.

Nothing here opens a socket or imports torch or textual. `messages` holds agent ↔ daemon,
`requests` holds client ↔ daemon, `findings` and `actions` the words both share, `frames` the bytes,
`limits` the caps, `places` where files and addresses are, `keys` the key pairs.
"""
