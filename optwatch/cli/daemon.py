"""`optwatch daemon`: the daemon in the foreground; `daemon stop` and `daemon status` for one that runs."""

import argparse
import json
from pathlib import Path
from typing import get_args

from optwatch.cli.connect import connected, seconds
from optwatch.cli.errors import Wrong
from optwatch.cli.limits import add_limits, limits_of
from optwatch.cli.logformat import LogFormat, set_up
from optwatch.wire.keys import daemon_key
from optwatch.wire.places import DEFAULT_ADDRESS
from optwatch.wire.requests import Mode

HELP = "Take in what agents send, find what goes wrong, serve the clients. Ends with Ctrl-C."
EXAMPLE = "optwatch daemon --mode auto --tensorboard runs/"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "verb",
        nargs="?",
        choices=("stop", "status"),
        help="stop: let the running daemon commit everything and end; status: say where it is. "
        "Without: be the daemon",
    )
    parser.add_argument("--json", action="store_true", help="with status: print JSON")
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        help=f"address to listen on (default: {DEFAULT_ADDRESS}, or the next port that is free)",
    )
    parser.add_argument("--store", metavar="DIR", type=Path, help="where the history is kept")
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="advise",
        help="what to do about findings in new runs: nothing, propose (default), or act",
    )
    parser.add_argument(
        "--policy",
        metavar="FILE.toml",
        type=Path,
        help="rules for advise and auto (default: the shipped ones)",
    )
    parser.add_argument(
        "--tensorboard", metavar="DIR", type=Path, help="write all runs as TensorBoard logs too, live"
    )
    parser.add_argument(
        "--tensorboard-ranks",
        choices=("merged", "apart"),
        default="merged",
        help="merged: one series of all ranks (default); apart: also each rank's own",
    )
    parser.add_argument(
        "--tensorboard-tensors", action="store_true", help="each tensor's statistics and histograms too"
    )
    parser.add_argument(
        "--metrics",
        metavar="PORT",
        type=_host_and_port,
        help="serve Prometheus metrics at http://127.0.0.1:PORT/metrics and the daemon's health at /healthz, "
        "to whoever can reach the port; HOST:PORT for another interface",
    )
    parser.add_argument(
        "--otlp",
        metavar="URL",
        nargs="?",
        const="",
        help="send the same metrics to an OpenTelemetry collector (http/protobuf), such as "
        "http://localhost:4318; without URL to the one that $OTEL_EXPORTER_OTLP_ENDPOINT names. The other "
        "$OTEL_* variables hold too",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="no keys: whoever reaches the address may do everything"
    )
    parser.add_argument(
        "--idle-exit", metavar="SECONDS", type=seconds, help="end when nobody has used it for so long"
    )
    parser.add_argument(
        "--log-format",
        choices=get_args(LogFormat),
        default="text",
        help="its log on stderr: lines for people (default), or a JSON object a line",
    )
    add_limits(parser)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port (such as 9464) and no HOST:PORT")
    return host or "127.0.0.1", int(port)


def run(args: argparse.Namespace) -> int:
    if args.verb == "stop":
        return _stop()
    if args.verb == "status":
        return _status(args.json)
    return _serve(args)


def _stop() -> int:
    with connected() as client:
        pid = client.greeting.pid
        client.stop()
    print(f"the daemon (process {pid}) commits everything and ends")
    return 0


def _status(as_json: bool) -> int:
    with connected() as client:
        greeting, runs = client.greeting, client.runs()
        address = client.address
    live = sum(run.state == "live" for run in runs)
    if as_json:
        print(
            json.dumps(
                {
                    "address": address,
                    "publish": greeting.publish,
                    "key": daemon_key(address) or "",
                    "pid": greeting.pid,
                    "version": greeting.version,
                    "store": greeting.store,
                    "mode": greeting.mode,
                    "role": greeting.role,
                    "runs": len(runs),
                    "live": live,
                    "trouble": greeting.trouble,
                }
            )
        )
        return 0
    print(f"daemon    {address}, process {greeting.pid}, optwatch {greeting.version}")
    print(f"key       {daemon_key(address) or 'none: it runs with --insecure'}")
    print(f"store     {greeting.store}")
    print(f"mode      {greeting.mode} for new runs; you are its {greeting.role}")
    print(f"runs      {len(runs)}, {live} of them live")
    if greeting.trouble:
        print(f"trouble   {greeting.trouble}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    # The daemon's parts come with SQLite, numpy and sockets: only this subcommand pays for them.
    from optwatch.daemon.errors import StartError
    from optwatch.daemon.process import Settings, serve

    set_up(args.log_format)
    settings = Settings(
        listen=args.listen,
        store=args.store,
        mode=args.mode,
        policy=args.policy,
        tensorboard=args.tensorboard,
        tensorboard_ranks=args.tensorboard_ranks,
        tensorboard_tensors=args.tensorboard_tensors,
        metrics=args.metrics,
        otlp=args.otlp,
        insecure=args.insecure,
        idle_exit=args.idle_exit,
        limits=limits_of(args),
    )
    try:
        serve(settings, ready=lambda address: print(f"optwatch daemon: listening on {address}", flush=True))
    except StartError as error:
        raise Wrong(str(error)) from None
    return 0
