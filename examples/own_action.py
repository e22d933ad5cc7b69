"""Actions of your own, inside of the training: what to do about a finding is the script's to say.

    python examples/own_action.py                  # beside `optwatch daemon`; without one it just trains
    python examples/own_action.py --break-at 400   # to see it: the learning rate goes wrong at this step

`watch.mirror(function)` calls a function with each finding and each command, in a thread of its own. The
loop looks at what it left, between two steps, where it can change what it likes. Here a critical finding
brings the weights of the last good moment back, with half the learning rate; and the command
`optwatch command own-action stop` ends the training.
"""

import argparse
import copy
import queue
from collections import deque

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import optwatch

options = argparse.ArgumentParser()
options.add_argument("--steps", type=int, default=3_000)
options.add_argument("--break-at", type=int, default=0, metavar="STEP")
given = options.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
critical: "queue.SimpleQueue[object]" = queue.SimpleQueue()


def hear(item: object) -> None:
    """Called by another thread: leave word, touch nothing else."""
    if getattr(item, "severity", "") == "critical" and getattr(item, "resolved_step", None) is None:
        critical.put(item)


watch = optwatch.attach(optimizer, model=model, name="own-action", allow="all")  # the one line
watch.mirror(hear)
# Two of them: the newer one may already hold what went wrong.
kept = deque([copy.deepcopy((model.state_dict(), optimizer.state_dict()))], maxlen=2)

for step in range(1, given.steps + 1):
    if step == given.break_at:
        optimizer.param_groups[0]["lr"] = 20.0
    batch = torch.randint(1_400, (64,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(pixels[batch]), labels[batch])
    loss.backward()
    optimizer.step()
    if not critical.empty():
        finding = critical.get()
        while not critical.empty():
            critical.get()
        model.load_state_dict(kept[0][0])
        optimizer.load_state_dict(kept[0][1])
        for group in optimizer.param_groups:
            group["lr"] /= 2
        kept.clear()
        kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        watch.mark("back to the last good weights, half the learning rate")
        print(f"step {step}: {getattr(finding, 'summary', finding)}: back to the last good weights")
    elif step % 100 == 0 and loss.item() < 2:
        kept.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
    if watch.should_stop:
        print(f"step {step}: asked to stop")
        break

watch.detach()
with torch.no_grad():
    accuracy = (model(pixels[1_400:]).argmax(dim=1) == labels[1_400:]).float().mean().item()
print(f"held-out accuracy {accuracy:.3f}")
