"""`python -m optwatch_agent.demo`: one training in a process of its own; prints its result as JSON."""

import argparse
import sys

import msgspec

from optwatch_agent.demo.faults import FAULTS
from optwatch_agent.demo.training import train


def main() -> None:
    """Train as the arguments say. Progress goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m optwatch_agent.demo")
    parser.add_argument("--fault", choices=FAULTS, default="lr_spike")
    parser.add_argument("--setup-of", choices=FAULTS, help="train as for this fault (default: --fault)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--watch", metavar="NAME", help="attach optwatch, as a run of this name")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that a step takes at least")
    parser.add_argument("--label", default="training", help="what progress is shown under")
    args = parser.parse_args()

    def progress(step: int, loss: float) -> None:
        print(f"  {args.label:<14} step {step:>6,} of {args.steps:,}   loss {loss:.4g}", file=sys.stderr)

    result = train(
        args.fault,
        setup_of=args.setup_of or args.fault,
        seed=args.seed,
        steps=args.steps,
        watch=args.watch,
        pace=args.pace,
        progress=progress,
    )
    print(msgspec.json.encode(result).decode())


main()
