"""`optwatch stacks RUN`: where the training threads of a run are."""

import argparse
import time

from optwatch.cli import show
from optwatch.cli.connect import POLL, add_run, connected, seconds
from optwatch.client import Client
from optwatch.wire.requests import RankStack

HELP = "Show the Python stack of each rank's training thread: file, line and function, nothing else."
EXAMPLE = "optwatch stacks digits --rank 2"


def configure(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--rank", type=int, metavar="R", help="this rank only (default: all)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a rank")
    parser.add_argument(
        "--timeout", type=seconds, default=5.0, metavar="S", help="wait S seconds for answers (5)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if every rank has answered, else 1."""
    began = time.monotonic()
    with connected(args.run_) as client:
        stacks = _answers(client, args.run_, args.rank, args.timeout)
    waited = time.monotonic() - began
    answered = [stack.age is not None and stack.age <= waited for stack in stacks]
    if args.json:
        show.print_json(
            [
                {
                    "rank": stack.rank,
                    "answered": there,
                    "step": stack.step,
                    "phase": stack.phase,
                    "phase_time": stack.phase_time,
                    "silence": stack.silence,
                    "frames": list(stack.frames) if there else [],
                }
                for stack, there in zip(stacks, answered, strict=True)
            ]
        )
    else:
        for stack, there in zip(stacks, answered, strict=True):
            _print(stack, there)
    return 0 if all(answered) else 1


def _answers(client: Client, run: str, rank: int | None, timeout: float) -> tuple[RankStack, ...]:
    """What the ranks answer, or after `timeout` seconds what there is."""
    began = time.monotonic()
    stacks = client.stacks(run, rank)
    while True:
        waited = time.monotonic() - began
        if all(stack.age is not None and stack.age <= waited for stack in stacks) or waited >= timeout:
            return stacks
        time.sleep(POLL)
        stacks = client.stacks(run, rank, ask=False)


def _print(stack: RankStack, answered: bool) -> None:
    if not answered:
        print(
            f"rank {stack.rank} does not answer, and nothing was heard of it for {stack.silence:.0f} s: "
            "its process is stopped, gone, or held in native code"
        )
        return
    where = f"step {stack.step:,}, in {stack.phase} for {stack.phase_time:.1f} s"
    print(show.paint(f"rank {stack.rank}  {where}", show.YELLOW))
    for frame in stack.frames or ("(no Python frame)",):
        print(f"  {show.plain(frame)}")
