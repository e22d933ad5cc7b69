"""`optwatch serve`: the terminal UI in a browser."""

import argparse
from importlib.util import find_spec

from optwatch.cli.errors import Wrong
from optwatch.wire.places import AddressError, find_daemon

HELP = "Show the terminal UI in a browser: on this machine only, behind a token, and read-only."
EXAMPLE = "optwatch serve        (then open the link that it prints)"

PORT = 47080


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", help="the daemon's address, such as tcp://127.0.0.1:47017")
    parser.add_argument(
        "--port", type=_port, default=PORT, metavar="N", help=f"port on 127.0.0.1 ({PORT}); 0: any free one"
    )


def run(args: argparse.Namespace) -> int:
    if missing := [name for name in ("textual", "textual_serve", "aiohttp") if find_spec(name) is None]:
        raise Wrong(f"the view in the browser needs {missing[0]}: pip install 'optwatch[serve]'")
    try:
        find_daemon(args.address)
    except AddressError as error:
        raise Wrong(str(error)) from None
    from optwatch_tui import serve

    try:
        listening = serve.listen(args.port)
    except OSError as error:
        raise Wrong(
            f"cannot listen on 127.0.0.1:{args.port}: {error.strerror}; choose another --port"
        ) from None
    token = serve.new_token()
    host, port = listening.getsockname()

    def ready() -> None:
        print(f"open http://{host}:{port}/?token={token}", flush=True)
        print("read-only; whoever has this link can look; Ctrl-C ends it", flush=True)

    serve.serve(args.address, listening, token, ready)
    return 0


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)
