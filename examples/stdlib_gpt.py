"""A small byte-level GPT that learns to write Python from Python's own standard library.

    python examples/stdlib_gpt.py

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import optwatch

CONTEXT, WIDTH, HEADS, BLOCKS = 96, 128, 4, 3
STEPS, WARMUP, BATCH = 300, 40, 16


class Block(nn.Module):
    """Causal self-attention and an MLP, each after a LayerNorm and around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, time, width] → the same shape."""
        batch, time, _ = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, time, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, time, WIDTH))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """[batch, time] int64 → [batch, time, 256]."""
        x = self.embed(text) + self.place.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


torch.manual_seed(0)
sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
corpus = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)
train, held_out = corpus[: -len(corpus) // 20], corpus[-len(corpus) // 20 :]


def draw(text: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` random windows, and the same ones a byte later: [count, CONTEXT] each."""
    starts = torch.randint(len(text) - CONTEXT - 1, (count,))
    windows = torch.stack([text[start : start + CONTEXT + 1] for start in starts]).long()
    return windows[:, :-1], windows[:, 1:]


def loss_on(text: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats per byte."""
    return F.cross_entropy(model(text).flatten(0, 1), target.flatten())


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
watch = optwatch.attach(optimizer, model=model, name="stdlib-gpt")  # the one line

exam = draw(held_out, 64)
for step in range(1, STEPS + 1):
    loss = loss_on(*draw(train, BATCH))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 50 == 0:
        with torch.no_grad():
            val_loss = loss_on(*exam)
        watch.log(val_loss=val_loss)
        print(f"step {step:>4}   loss {loss.item():.3f}   held-out {val_loss.item():.3f} nats per byte")
