"""A small real training, run as a process by the end-to-end tests.

    python -m tests.trainings --steps 600 --pause 0.005 --watch NAME

Digits from scikit-learn, an MLP, AdamW. Prints one JSON line at the end: the digest of the parameters.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

GUARD = 120
"""Seconds after which something hangs."""


class Training:
    """The training as a child process, whose last line of output says how it ended."""

    def __init__(self, *options: str, daemon: str | None = None) -> None:
        environment = os.environ | ({"OPTWATCH_DAEMON": daemon} if daemon else {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainings", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def result(self) -> dict[str, object]:
        """Wait for the end; it must be a good one, and silent."""
        out, err = self.process.communicate(timeout=GUARD)
        assert self.process.returncode == 0, err
        assert "Traceback" not in err, err
        return dict(json.loads(out.splitlines()[-1]))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of sleep in each step")
    parser.add_argument("--watch", metavar="NAME")
    parser.add_argument("--until", type=Path, help="go on until this file is there")
    options = parser.parse_args()

    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if options.watch:
        import optwatch

        optwatch.attach(optimizer, model=model, name=options.watch)
    steps = 0
    while steps < options.steps or (options.until and not options.until.exists()):
        batch = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        steps += 1
        time.sleep(options.pause)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    print(json.dumps({"steps": steps, "parameters": digest.hexdigest()}))


if __name__ == "__main__":
    main()
