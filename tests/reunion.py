"""How long all agents of a large job take to be back: `python -m tests.reunion --agents 1024`.

The links are the agent's own, in a few processes, each stepping twice a second. The daemon is killed and
started again at once, and once more after it was away for a while, so that all agents wait for their next
try. Told is the time from the new daemon's listening until each agent was welcome again, and what was lost.
"""

import argparse
import multiprocessing
import os
import time
import uuid
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np

from tests.daemons import DaemonProcess, home_of_its_own

STEP_TIME = 0.5
PATIENCE = 120.0


def agents(
    address: str, run: str, numbers: range, total: int, ended: Event, told: "multiprocessing.Queue[Any]"
) -> None:
    """Some of the agents. Told is, whenever all of them are welcome, when each of them was."""
    from tests.simulated import SimulatedRun, Trainings

    here = SimulatedRun("many", address, 0, False, run=run, numbers=numbers, world_size=total, hasty=False)
    trainings = Trainings([here], STEP_TIME)
    for rank in here.ranks:
        rank.link.start()
        time.sleep(0.002)
    trainings.start()
    known = 0.0
    while not ended.is_set():
        if all(rank.served > rank.greeted > known for rank in here.ranks):
            known = max(rank.greeted for rank in here.ranks)
            told.put([rank.welcomed for rank in here.ranks])
        time.sleep(0.01)
    trainings.stopped = True
    trainings.join()
    end = time.monotonic() + PATIENCE
    while any(rank.link.queued for rank in here.ranks) and time.monotonic() < end:
        time.sleep(0.05)
    told.put(sum(rank.link.dropped + rank.link.queued for rank in here.ranks))
    os._exit(0)  # a thousand links take their time to say goodbye


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=1_024)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--away", type=float, nargs="*", default=[0.0, 10.0], help="seconds that it is away")
    args = parser.parse_args()
    with home_of_its_own() as home:
        daemon = DaemonProcess(home).start()
        spawn = multiprocessing.get_context("spawn")
        ended, run = spawn.Event(), uuid.uuid4().hex
        share = -(-args.agents // args.processes)
        queues, processes = [], []
        for first in range(0, args.agents, share):
            queues.append(spawn.Queue())
            numbers = range(first, min(first + share, args.agents))
            given = (daemon.address, run, numbers, args.agents, ended, queues[-1])
            processes.append(spawn.Process(target=agents, args=given, daemon=True))
            processes[-1].start()
        for queue in queues:
            queue.get(timeout=PATIENCE)
        for away in args.away:
            time.sleep(3)
            daemon.kill()
            time.sleep(away)
            daemon.start()
            listening = time.monotonic()
            times = np.concatenate([queue.get(timeout=PATIENCE) for queue in queues]) - listening
            print(
                f"away {away:g} s and its start: {args.agents} agents back after {np.median(times):.2f} s "
                f"(median), {np.quantile(times, 0.99):.2f} s (99 %), {times.max():.2f} s (the last)",
                flush=True,
            )
        ended.set()
        lost = sum(queue.get(timeout=2 * PATIENCE) for queue in queues)
        with daemon.client() as client:
            status = client.status(run)
        print(f"{lost} messages lost or waiting; {status.steps_recorded} steps, gaps {status.gaps}")
        daemon.kill()


if __name__ == "__main__":
    main()
