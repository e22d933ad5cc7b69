"""`optwatch command RUN ACTION`: one command by hand."""

import argparse
import sys
import time
from typing import Any

from optwatch.cli import show
from optwatch.cli.commands import outcome_text
from optwatch.cli.connect import add_run, add_waiting, connected, wait
from optwatch.cli.errors import Wrong
from optwatch.client import Refusal
from optwatch.client.effects import effects, obstacle
from optwatch.export.text import arguments
from optwatch.wire.actions import ACTIONS, OPEN_STATES, Command, action_args, parse_action
from optwatch.wire.requests import RunStatus

HELP = "Give one command by hand, and wait until every rank has applied it. Exit status 0 only then."
EXAMPLE = """optwatch command digits restart
  optwatch command digits scale_lr --factor 0.5 --ramp 50
  optwatch command digits scale_lr --reset
  optwatch command digits scale_lr --factor 0.5 --dry-run
  optwatch command digits clip --max-norm auto --wait judged --timeout 120
  optwatch command digits perturb --std 0.01
  optwatch command digits rollback --to-step last-good
  optwatch command digits stop --why 'flat for an hour'"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("action", metavar="ACTION", choices=ACTIONS, help=f"one of {', '.join(ACTIONS)}")
    restart = parser.add_argument_group("restart: zero the optimizer's moments and its step")
    restart.add_argument("--moments", choices=("all", "first", "second"), help="which moments (all)")
    restart.add_argument("--warmup", type=int, metavar="N", help="warm the LR up over N steps (0)")
    scale = parser.add_argument_group("scale_lr: multiply the LR scale in force (0.5 twice is 0.25)")
    scale.add_argument("--factor", type=float, metavar="F", help="by this")
    scale.add_argument("--ramp", type=int, metavar="N", help="over N steps (at once)")
    scale.add_argument("--reset", action="store_true", default=None, help="back to the schedule's LR")
    clip = parser.add_argument_group("clip: clip the global gradient norm")
    clip.add_argument(
        "--max-norm", type=_max_norm, metavar="X|auto", help="to this, or to what the run shows"
    )
    clip.add_argument(
        "--off", action="store_true", default=None, help="stop clipping; with perturb, the noise"
    )
    clip.add_argument("--adapt", action="store_true", default=None, help="follow what is usual (auto does)")
    perturb = parser.add_argument_group("perturb: add noise to the gradients from now on")
    perturb.add_argument("--target", choices=("grad", "param"), help="param: to the parameters, once (grad)")
    perturb.add_argument("--std", type=float, metavar="S", help="its standard deviation at first")
    perturb.add_argument(
        "--decay", type=float, metavar="G", help="σ² falls like (1 + t)^-G over t steps (0.55)"
    )
    perturb.add_argument("--seed", type=int, metavar="N", help="of its own generators (drawn)")
    rollback = parser.add_argument_group("rollback: put parameters and optimizer state back to a snapshot")
    rollback.add_argument(
        "--to-step",
        type=_to_step,
        metavar="S|last-good",
        help="of this step (the newest before what is found)",
    )
    rollback.add_argument(
        "--rng", action="store_true", default=None, help="the random generators, too: the same data again"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what it would change, where, when, and the way back"
    )
    parser.add_argument("--why", default="", help="kept with the command")
    add_waiting(parser)
    parser.add_argument("--json", action="store_true", help="print the command as a JSON object")


def run(args: argparse.Namespace) -> int:
    values = _arguments(args)
    with connected(args.run_) as client:
        status = client.status(args.run_)
        run_id = status.run
        if args.dry_run:
            return _tell(args.action, values, status, args.json)
        try:
            command = client.act(run_id, args.action, values, args.why)
        except Refusal as refusal:
            if refusal.code == "bad_request":
                raise
            command = _refused(run_id, args.action, values, args.why, refusal.reason)
        else:
            tell = Progress() if sys.stderr.isatty() and not args.json else _nothing
            command = wait(client, run_id, command.id, args.wait, args.timeout, tell)
    return report(command, args.wait, args.json, args.timeout)


def report(command: Command, until: str, as_json: bool, timeout: float) -> int:
    """Print what became of a command; the exit status."""
    if as_json:
        show.print_json(command)
    else:
        told, colour = show.state_cell(command)
        text = f"{command.id} {command.action} {arguments(command.args)}".strip()
        if command.step is not None:
            text += f": {applied_text(command)}"
        if command.outcome is not None:
            text += f": {outcome_text(command)}"
        if command.state in OPEN_STATES:
            text += f": still {command.state} after {timeout:g} s"
        elif until == "judged" and command.state == "applied":
            text += f": not judged yet after {timeout:g} s"
        if command.reason:
            text += f": {command.reason}"
        print(f"{show.paint(told, colour)}  {show.plain(text)}")
    return 0 if command.state == "judged" or (command.state == "applied" and until == "applied") else 1


def _tell(action: str, args: dict[str, Any], status: RunStatus, as_json: bool) -> int:
    """Print what a command would do; 1 where something is known to stand in its way."""
    facts = effects(action, args, status, "optwatch undo")
    why_not = obstacle(action, status)
    if as_json:
        show.print_json({"action": action, "args": args, "effects": dict(facts), "obstacle": why_not or None})
    else:
        print(f"{action} {arguments(args)}".strip())
        for label, text in facts:
            print(f"  {label + ':':<15}{show.plain(text)}")
        if why_not:
            print(f"  {'but:':<15}{show.plain(why_not)}")
    return 1 if why_not else 0


class Progress:
    """Says on the terminal how far a command is that is under way, each thing once."""

    def __init__(self) -> None:
        self._told = ""

    def __call__(self, command: Command) -> None:
        if (text := progress_text(command)) != self._told:
            self._told = text
            print(show.plain(text), file=sys.stderr, flush=True)


def progress_text(command: Command) -> str:
    """How far a command is: what it waits for, its step and its votes, or on how many ranks it is applied."""
    if command.step is not None:
        return applied_text(command)
    if command.world_size is None or command.reason:
        return f"waiting: {command.reason}" if command.reason else "waiting for its turn"
    if command.due is None:
        return "waiting for the next step"
    votes = f"{len(command.votes)} of {command.world_size} ranks have voted for it"
    return f"to be applied before step {command.due:,}: {votes}"


def applied_text(command: Command) -> str:
    """On how many ranks an applied command is, and at which step."""
    ranks = len(command.ranks_applied)
    return f"applied on {ranks} of {command.world_size or ranks} ranks at step {command.step:,}"


def _nothing(command: Command) -> None:
    """Where nobody watches."""


def _arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The action's own arguments, checked as the daemon will check them."""
    options = [field for action in ACTIONS.values() for field in action.__struct_fields__]
    given = {name: value for name in options if (value := getattr(args, name)) is not None}
    own = ACTIONS[args.action].__struct_fields__
    for name in given:
        if name not in own:
            takes = ", ".join(_option(field) for field in own) or "no option of its own"
            raise Wrong(f"{args.action} takes {takes}, not {_option(name)}")
    try:
        return action_args(parse_action(args.action, given))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _refused(run: str, action: str, args: dict[str, Any], why: str, reason: str) -> Command:
    """A command that was turned away at the door: the run's own list does not hold it."""
    return Command(
        id="",
        run=run,
        action=action,
        args=args,
        state="refused",
        asked_by="",
        why=why,
        asked_at=time.time(),
        reason=reason,
    )


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _to_step(text: str) -> int | str:
    try:
        return text if text == "last-good" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a step nor last-good") from None


def _max_norm(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None
