"""A small convolutional network on scikit-learn's handwritten digits, with a held-out loss on the charts.

    python examples/digits_cnn.py

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import optwatch

EPOCHS = 40

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
shuffled = torch.randperm(len(images))
train, held_out = shuffled[:-400], shuffled[-400:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
watch = optwatch.attach(optimizer, model=model, name="digits-cnn")  # the one line

for epoch in range(EPOCHS):
    model.train()
    for batch in train[torch.randperm(len(train))].split(64):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
    model.eval()
    with torch.no_grad():
        scores = model(images[held_out])
    val_loss = F.cross_entropy(scores, labels[held_out])
    watch.log(val_loss=val_loss)
    if (epoch + 1) % 5 == 0:
        accuracy = (scores.argmax(dim=1) == labels[held_out]).float().mean()
        print(f"epoch {epoch + 1:>2}   held-out loss {val_loss.item():.4f}   accuracy {accuracy.item():.3f}")
