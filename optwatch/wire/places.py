"""Where things are: directories, the connection file, and the daemon's address."""

import hashlib
import ipaddress
import os
import re
from pathlib import Path

import msgspec

DEFAULT_ADDRESS = "tcp://127.0.0.1:47017"


class AddressError(ValueError):
    """An address that cannot be used; the message says what one looks like."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The connection file: where this user's daemon listens and which key it has."""

    address: str
    publish: str
    key: str
    """The daemon's public CURVE key, Z85; empty with --insecure."""
    pid: int
    store: str


def config_dir() -> Path:
    """$XDG_CONFIG_HOME/optwatch: keys and configuration."""
    return _xdg("XDG_CONFIG_HOME", ".config")


def state_dir() -> Path:
    """$XDG_STATE_HOME/optwatch: the store, logs, and queues that runs left behind."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def runtime_dir() -> Path:
    """$XDG_RUNTIME_DIR/optwatch, else the state directory: the connection file."""
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "optwatch"
    return state_dir()


def connection_file() -> Path:
    return runtime_dir() / "connection.json"


def notify_file() -> Path:
    """Whom the daemon tells what happens."""
    return config_dir() / "notify.toml"


def read_connection() -> Connection | None:
    """The connection file, None where there is none that can be read, or it is not this user's own."""
    try:
        with connection_file().open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():  # it would vouch for a key of somebody else's
                return None
            return msgspec.json.decode(file.read(), type=Connection)
    except (OSError, msgspec.DecodeError):
        return None


def write_connection(connection: Connection) -> None:
    """Write the connection file at once and for this user only (0600)."""
    write_private(connection_file(), msgspec.json.format(msgspec.json.encode(connection)))


def write_private(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it, nor anybody else any of it (0600 in a 0700)."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)


def parse_address(text: str) -> str:
    """Check the address of a daemon: tcp://HOST:PORT, or HOST:PORT, or ipc://PATH.

    Raises:
        AddressError: one sentence that says what is wrong and what an address looks like.
    """
    example = f"an address looks like {DEFAULT_ADDRESS}"
    if text.startswith("ipc://"):
        if len(text) <= len("ipc://") or len(text) > 100:
            raise AddressError(f"{text!r} is not an ipc path of up to 94 characters; {example}")
        return text
    match = re.fullmatch(r"(?:tcp://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.*-]+):([0-9]{1,5})", text)
    if match is None:
        raise AddressError(f"cannot parse the address {text!r}: {example}")
    host, port = match[1], int(match[2])
    if not 0 <= port <= 65535:
        raise AddressError(f"port {port} is not between 0 and 65535: {example}")
    return f"tcp://{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether nobody on another host can reach an address."""
    if address.startswith("ipc://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_daemons(address: str | None = None) -> tuple[str, ...]:
    """The daemons among which runs are divided: as given, else $OPTWATCH_DAEMON, several with commas between
    them, else the one of the connection file, else the default.

    Raises:
        AddressError: an address given, or one in $OPTWATCH_DAEMON, cannot be parsed.
    """
    if text := address or os.environ.get("OPTWATCH_DAEMON"):
        return tuple(dict.fromkeys(parse_address(part.strip()) for part in text.split(",")))
    if connection := read_connection():
        return (connection.address,)
    return (DEFAULT_ADDRESS,)


def find_daemon(address: str | None = None, run: str | None = None) -> str:
    """The daemon's address, as `find_daemons` finds it; of several the one that has the run of this id.

    Raises:
        AddressError: an address cannot be parsed, or there are several and no run is given.
    """
    several = find_daemons(address)
    if len(several) == 1:
        return several[0]
    if run is None:
        raise AddressError(f"one daemon has to be named, of {', '.join(several)}")
    return max(several, key=lambda each: hashlib.blake2b(f"{each}\0{run}".encode()).digest())


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "optwatch"
