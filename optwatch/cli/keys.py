"""`optwatch keys`: your own key, and whom your daemon lets in beside you."""

import argparse

from optwatch.cli.errors import Wrong
from optwatch.cli.show import Cell, print_facts, print_json, print_table
from optwatch.wire.guests import ROLES, add_guest, read_guests, remove_guest
from optwatch.wire.keys import KeyFileError, key_pair
from optwatch.wire.places import is_loopback, read_connection

HELP = "Show your public key; let others use your daemon, as agent, viewer or operator."
EXAMPLE = """optwatch keys                               # your key: give it to whoever runs the daemon
  optwatch keys add viewer 'KEY' alice        # on the daemon's host: alice may look, and no more
  optwatch keys remove alice

An agent sends what a training measures and takes commands; a viewer may ask, but not act; an operator may do
all that you may. A key that is removed is refused at once, but a view that it had open goes on to get what
the daemon publishes until its connection ends: restart the daemon to end it."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(dest="verb", metavar="add|remove")
    add = verbs.add_parser("add", help="let a key in")
    add.add_argument("role", choices=ROLES, help="what it may do")
    add.add_argument("key", help="the public key, as `optwatch keys` shows it there; in single quotes")
    add.add_argument("name", help="whose it is: so the audit log calls them")
    remove = verbs.add_parser("remove", help="let a key in no more")
    remove.add_argument("name")


def run(args: argparse.Namespace) -> int:
    try:
        if args.verb == "add":
            guest = add_guest(args.role, args.key, args.name)
            print(f"{guest.name} is let in as {guest.role}: a daemon that runs takes note within a second")
        elif args.verb == "remove":
            remove_guest(args.name)
            print(f"{args.name} is let in no more: a daemon that runs takes note within a second")
        else:
            _show(args.json)
    except (ValueError, KeyFileError) as error:
        raise Wrong(str(error)) from None
    except OSError as error:
        raise Wrong(f"cannot use {error.filename}: {error.strerror}") from None
    return 0


def _show(as_json: bool) -> None:
    own, guests, connection = key_pair("user").public, read_guests(), read_connection()
    if as_json:
        print_json(
            {
                "key": own,
                "daemon": connection and {"address": connection.address, "key": connection.key},
                "guests": guests,
            }
        )
        return
    facts: dict[str, Cell] = {"your key": own}
    if connection is not None:
        facts |= {"your daemon": connection.address, "its key": connection.key or "none (--insecure)"}
    print_facts(facts)
    if guests:
        print()
        print_table(("role", "name", "key"), [(guest.role, guest.name, guest.public) for guest in guests])
    print()
    if connection is None or is_loopback(connection.address):
        print("for other hosts start the daemon with --listen tcp://THIS_HOST:47017")
    elif connection.key:
        print("on another host, with its user's key let in here:")
        print(f"export OPTWATCH_DAEMON={connection.address} OPTWATCH_DAEMON_KEY='{connection.key}'")
