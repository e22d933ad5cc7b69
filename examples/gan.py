"""A small GAN on scikit-learn's handwritten digits: two optimizers, one run.

    python examples/gan.py

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import optwatch

NOISE, BATCH, STEPS = 16, 64, 1_000

torch.manual_seed(0)
digits = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
train, held_out = digits[:-400], digits[-400:]

generator = nn.Sequential(nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
discriminator = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(128, 1))
optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
watch = optwatch.attach({"generator": optimizer_g, "discriminator": optimizer_d}, name="gan")  # the one line


def judged(images: torch.Tensor, real: bool) -> torch.Tensor:
    """The discriminator's loss where it should call the images [n, 64] real, or not."""
    scores = discriminator(images)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


for step in range(1, STEPS + 1):
    real = train[torch.randint(len(train), (BATCH,))]
    made = generator(torch.randn(BATCH, NOISE))

    optimizer_d.zero_grad()
    ((judged(real, True) + judged(made.detach(), False)) / 2).backward()
    optimizer_d.step()

    optimizer_g.zero_grad()
    loss_g = judged(made, True)
    loss_g.backward()
    optimizer_g.step()

    if step % 250 == 0:
        discriminator.eval()
        with torch.no_grad():
            called_real = (discriminator(held_out) > 0).float().mean()
        discriminator.train()
        print(
            f"step {step:>4}   generator {loss_g.item():.3f}   held-out called real {called_real.item():.2f}"
        )
