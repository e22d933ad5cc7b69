"""A multilayer perceptron on scikit-learn's handwritten digits.

    python examples/digits_mlp.py [EPOCHS]

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import optwatch

torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
shuffled = torch.randperm(len(pixels))
train, held_out = shuffled[:-400], shuffled[-400:]

model = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
watch = optwatch.attach(optimizer, model=model, name="digits-mlp")  # the one line

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 150
for epoch in range(epochs):
    model.train()
    for batch in train[torch.randperm(len(train))].split(64):
        loss = F.cross_entropy(model(pixels[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = model(pixels[held_out])
    accuracy = (scores.argmax(dim=1) == labels[held_out]).float().mean()
    if (epoch + 1) % max(epochs // 10, 1) == 0:
        print(f"epoch {epoch + 1:>3}   loss {loss.item():.4f}   held-out accuracy {accuracy.item():.3f}")
