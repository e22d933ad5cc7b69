"""scikit-learn's handwritten digits in a loop under Accelerate, with gradient accumulation.

    pip install 'optwatch[accelerate,demo]'
    accelerate launch examples/with_accelerate.py      (or: python examples/with_accelerate.py)

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import optwatch

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
shuffled = torch.randperm(len(pixels))
train, held_out = shuffled[:-400], shuffled[-400:]

accelerator = Accelerator(gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(pixels[train], labels[train]), batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
watch = optwatch.attach(optimizer, model=model, name="accelerate-digits")  # the one line

for epoch in range(20):
    model.train()
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        scores = model(pixels[held_out].to(accelerator.device)).cpu()
    val_loss = F.cross_entropy(scores, labels[held_out])
    watch.log(val_loss=val_loss)
    if (epoch + 1) % 5 == 0:
        accuracy = (scores.argmax(dim=1) == labels[held_out]).float().mean()
        accelerator.print(f"epoch {epoch + 1:>2}   held-out accuracy {accuracy.item():.3f}")
