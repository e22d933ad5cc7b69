"""Two trainings in threads that take turns as often as can be, attached to as the argument says."""

import os
import sys
import threading

import torch
from torch import nn

import optwatch
from optwatch_agent.unchanged import Everything

STEPS = 5_000


def main(how: str) -> None:
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    if how == "unchanged":
        Everything("trial")
    models = [nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    if how == "together":
        optwatch.attach(dict(zip("ab", optimizers, strict=True)), name="trials")

    def training(number: int) -> None:
        if how == "apart":
            optwatch.attach(optimizers[number], model=models[number], name=f"trial {number}")
        x = torch.randn(4, 8)
        for _ in range(STEPS):
            optimizers[number].zero_grad()
            models[number](x).square().mean().backward()
            optimizers[number].step()

    threads = [threading.Thread(target=training, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("done", flush=True)
    os._exit(0)  # what is sent at the end is not what is looked at


if __name__ == "__main__":
    main(sys.argv[1])
