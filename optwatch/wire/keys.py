"""CURVE key pairs, made at first use and kept for this user only.

`daemon` is the server's pair, `user` the one that this user's agents and clients present. A peer's
public key is Z85 text of 40 characters. The daemon's public key reaches agents through the connection
file, or $OPTWATCH_DAEMON_KEY on another host.
"""

import fcntl
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from optwatch.wire.places import config_dir, read_connection, write_private

Owner = Literal["daemon", "user"]


class KeyFileError(ValueError):
    """A key file that cannot be used; the message names it and says what to do."""


class KeyPair(msgspec.Struct, frozen=True):
    public: str
    secret: str


def key_pair(owner: Owner) -> KeyPair:
    """This user's key pair, made where there is none.

    Raises:
        KeyFileError: the file is there but is no key pair, or others may read it.
        OSError: the directory cannot be written.
    """
    path = config_dir() / "keys" / f"{owner}.json"
    try:
        data, mode = _contents(path)
    except FileNotFoundError:
        _make(path)
        data, mode = _contents(path)
    if mode & 0o077:
        raise KeyFileError(f"{path} can be read by others: run chmod 600 {path}")
    try:
        return _read(data)
    except ValueError as error:
        raise KeyFileError(f"{path} is no key pair ({error}): delete it and a new one is made") from None


def _contents(path: Path) -> tuple[bytes, int]:
    """What a file holds, and its mode."""
    with path.open("rb") as file:
        return file.read(), os.fstat(file.fileno()).st_mode


@lru_cache(maxsize=2)  # an agent asks at each connection
def _read(data: bytes) -> KeyPair:
    pair = msgspec.json.decode(data, type=KeyPair)
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise ValueError("the halves do not match")
    return pair


def _make(path: Path) -> None:
    """Write a new pair, and of several processes that do so at once let one be the first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (path.parent / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            public, secret = zmq.curve_keypair()
            while public.startswith(b"-"):  # as an argument it would be taken for an option
                public, secret = zmq.curve_keypair()
            write_private(path, msgspec.json.encode(KeyPair(public.decode(), secret.decode())))


def daemon_key(address: str) -> str | None:
    """The public key of the daemon at `address`, None where nothing vouches for one.

    "" stands for a daemon without keys: the connection file says so, or $OPTWATCH_INSECURE is 1.
    """
    if key := os.environ.get("OPTWATCH_DAEMON_KEY"):
        return key
    connection = read_connection()
    if connection is not None and connection.address == address:
        return connection.key
    return "" if os.environ.get("OPTWATCH_INSECURE") == "1" else None
