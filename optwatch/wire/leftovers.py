"""Queues that runs left behind: what a run could not send before it ended, for the next daemon.

A file holds an agent's messages as they would have gone over the wire: `MAGIC`, then for each message
the number of its parts (<u4), and for each part its length (<u8) and its bytes.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from optwatch.wire import limits
from optwatch.wire.frames import Buffer, Parts, WireError
from optwatch.wire.places import state_dir, write_private

MAGIC = b"optwatch queue 1\n"
SUFFIX = ".queue"
MAX_TOTAL = 256 << 20
"""Bytes of all queues together: where there never is a daemon, the oldest give way."""


def leftovers_dir() -> Path:
    return state_dir() / "queues"


def leave(session: str, messages: Iterable[Parts]) -> Path:
    """Write an agent's messages to where the next daemon looks for them.

    Raises:
        OSError: the state directory cannot be written.
    """
    chunks: list[Buffer] = [MAGIC]
    for parts in messages:
        chunks.append(struct.pack("<I", len(parts)))
        for part in parts:
            chunks += [struct.pack("<Q", len(part)), part]
    path = leftovers_dir() / f"{session}{SUFFIX}"
    write_private(path, b"".join(chunks))
    _make_room(path)
    return path


def read_messages(file: BinaryIO) -> Iterator[list[bytes]]:
    """The messages of a queue, one at a time.

    Raises:
        WireError: it is no queue, it ends in mid-message, or a length is over its cap.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise WireError("not a queue of this version")
    while head := file.read(4):
        (count,) = struct.unpack("<I", _all(head, 4))
        if not 1 <= count <= limits.MAX_PARTS:
            raise WireError(f"a message of {count} parts")
        parts = []
        for _ in range(count):
            (size,) = struct.unpack("<Q", _all(file.read(8), 8))
            if size > limits.MAX_BLOCK_BYTES:
                raise WireError(f"a part of {size} bytes")
            parts.append(_all(file.read(size), size))
        yield parts


def _all(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise WireError("it ends in the middle of a message")
    return data


def _make_room(newest: Path) -> None:
    """Delete the oldest queues beyond `MAX_TOTAL`."""
    sizes = []
    for path in newest.parent.glob(f"*{SUFFIX}"):
        try:
            sizes.append((path.stat().st_mtime, path.stat().st_size, path))
        except FileNotFoundError:  # a daemon took it in just now
            continue
    total = sum(size for _, size, _ in sizes)
    for _, size, path in sorted(sizes):
        if total <= MAX_TOTAL or path == newest:
            return
        path.unlink(missing_ok=True)
        total -= size
