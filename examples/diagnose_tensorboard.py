"""What went wrong in trainings of long ago, from their TensorBoard files.

    python examples/diagnose_tensorboard.py

It writes two small runs as an old script would have, one of which diverges, and has `optwatch diagnose` look
at the directory. Of your own logs it takes this line, with the tags that they use:

    optwatch diagnose runs/ --column loss=Loss/train --column grad_norm=grads/global

No daemon is needed, and neither is the script that trained. The exit status is 1 where something is found.
"""

import math
import random
import subprocess
import sys
import tempfile

from torch.utils.tensorboard import SummaryWriter

random.seed(0)
with tempfile.TemporaryDirectory() as directory:
    for name, breaks_at in (("steady", None), ("broken", 700)):
        with SummaryWriter(f"{directory}/{name}") as writer:
            for step in range(1, 1_001):
                loss = 2.3 * math.exp(-step / 300) + 0.2 + random.gauss(0, 0.02)
                norm = 1 + random.gauss(0, 0.1)
                if breaks_at and step >= breaks_at:
                    loss += 0.3 * (step - breaks_at) ** 0.7
                    norm *= 8
                writer.add_scalar("Loss/train", loss, step)
                writer.add_scalar("grads/global", norm, step)
    command = [sys.executable, "-m", "optwatch", "diagnose", directory]
    command += ["--column", "loss=Loss/train", "--column", "grad_norm=grads/global"]
    print("$ optwatch", *command[3:], flush=True)
    status = subprocess.run(command, check=False).returncode
print(f"exit status {status}: {'something was found' if status == 1 else 'nothing was found'}")
