"""`optwatch notify test [TARGET]`: a message to whom notify.toml names, and what became of it."""

import argparse

from optwatch.cli.errors import Wrong
from optwatch.cli.show import paint, print_json
from optwatch.export.notices import Message
from optwatch.export.targets import Target, read_targets
from optwatch.wire.places import notify_file
from optwatch.wire.toml import TomlError

HELP = "Try out notifications: e-mail, Slack, webhooks and others, as notify.toml names them."
EXAMPLE = """optwatch notify test

The file is notify.toml in the configuration directory (~/.config/optwatch); examples/notify.toml is one to
copy. A daemon reads it when it starts, and again at SIGHUP."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=("test",), help="test: send a message to each target")
    parser.add_argument("target", nargs="?", metavar="TARGET", help="the name of one target (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    path = notify_file()
    try:
        targets = read_targets(path)
    except TomlError as error:
        raise Wrong(str(error)) from None
    if not targets:
        raise Wrong(f"there is nobody to notify: {path} names no target; examples/notify.toml is one to copy")
    chosen = [target for target in targets if args.target in (None, target.name)]
    if not chosen:
        names = ", ".join(target.name for target in targets)
        raise Wrong(f"{path} names no target {args.target!r}: there are {names}")
    try:
        from optwatch.export import post  # noqa: F401  the import is the check
    except ModuleNotFoundError:
        raise Wrong("notifications need their extra: pip install 'optwatch[notify]'") from None
    told = [(target, *_try(target)) for target in chosen]
    if args.json:
        print_json([{"target": t.name, "service": s, "sent": not why, "reason": why} for t, s, why in told])
    else:
        for target, service, why in told:
            glyph, colour, said = ("✖", "31", f"not sent: {why}") if why else ("✓", "32", "sent")
            print(f"{paint(glyph, colour)} {target.name} ({service or 'unknown'}): {said}")
            print(f"  is told of {_wishes(target)}")
    return 1 if any(why for _, _, why in told) else 0


def _try(target: Target) -> tuple[str, str]:
    """The target's service, and why nothing was sent, "" where it was."""
    from optwatch.export.post import Post

    try:
        way = Post(target.address())
    except (ValueError, LookupError) as error:
        return "", str(error.args[0])
    text = "This is a test. You will be told of " + _wishes(target) + "."
    return way.service, way.send(Message("optwatch: a test message", text))


def _wishes(target: Target) -> str:
    """What a target is told, in words."""
    words = []
    if "finding" in target.about:
        kinds = f" of kind {', '.join(target.kind)}" if target.kind else ""
        words.append(f"{' and '.join(target.severity)} findings{kinds}")
    words += ["their end"] if "over" in target.about else []
    words += ["actions"] if "action" in target.about else []
    words += ["lost runs and ranks"] if "lost" in target.about else []
    said = ", ".join(words)
    if target.digest_minutes:
        said += f"; every {target.digest_minutes:g} minutes, the critical at once"
    if target.quiet:
        but = f" but for {' and '.join(target.quiet_except)}" if target.quiet_except else ""
        said += f"; quiet {target.quiet}{but}"
    return said
