"""A detector of your own, beside the daemon: it reads a run's series as they come, and marks what it sees.

    python examples/own_detector.py RUN [--halve]

It is a client like `optwatch tui`: nothing that a training sends runs code in the daemon, and a detector that
fails ends alone. With --halve it also acts: the learning rate is halved, once. `RUN` is a name or an id; a
run that has ended is looked at from its first step to its last.

This one watches the length of the updates beside that of the parameters. A ratio of about 1e-3 is usual; far
above it a network forgets what it has learned.
"""

import argparse
import time

import numpy as np

from optwatch.client import Client, Refusal

HIGH = 3e-2
"""update_norm / param_norm that is too much."""
IN_A_ROW = 5
"""Samples that have to be above it."""


class LongUpdates:
    """Takes rows in order of step, in parts of any size, and says at which steps an alarm is due."""

    def __init__(self) -> None:
        self._above = 0

    def update(self, steps: np.ndarray, update_norm: np.ndarray, param_norm: np.ndarray) -> list[int]:
        """Steps i8[n], norms f8[n]: the steps at which updates have been too long for long enough."""
        alarms = []
        for step, ratio in zip(steps.tolist(), (update_norm / param_norm).tolist(), strict=True):
            self._above = self._above + 1 if ratio > HIGH else 0
            if self._above == IN_A_ROW:
                alarms.append(step)
        return alarms


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--halve", action="store_true", help="halve the learning rate at the first alarm")
    given = parser.parse_args()
    detector = LongUpdates()
    seen, acted, samples = 0, False, 0
    with Client() as client:
        run = client.status(given.run).run
        while True:
            state = client.status(run).state  # before the rows: after the end none come
            series, rows = client.series(run, first=seen + 1)
            if {"update_norm", "param_norm"} <= set(series.columns):
                at = [series.columns.index(name) for name in ("update_norm", "param_norm")]
                there = rows.logged[:, at].all(axis=1)
                samples += int(there.sum())
                for step in detector.update(rows.step[there], *rows.values[there][:, at].T):
                    print(f"step {step}: updates over {HIGH:g} of the parameters", flush=True)
                    if state == "live":
                        client.mark(run, f"updates too long since step {step}")
                    if given.halve and not acted and state == "live":
                        acted = True
                        try:
                            client.act(run, "scale_lr", {"factor": 0.5, "ramp": 20}, "updates too long")
                        except Refusal as refusal:
                            print(f"not halved: {refusal.reason}")
            seen = int(rows.step[-1]) if len(rows.step) else seen
            if state != "live":
                break
            time.sleep(0.5)
    print(f"{samples} samples up to step {seen}; the run is {state}")


if __name__ == "__main__":
    main()
