"""scikit-learn's handwritten digits, trained by Lightning.

    pip install 'optwatch[lightning,demo]'
    python examples/with_lightning.py

Start `optwatch tui` beside it to watch. Without a daemon it trains all the same.
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

from optwatch_agent.lightning import OptwatchCallback


class Digits(L.LightningModule):
    """A multilayer perceptron."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        pixels, labels = batch
        return F.cross_entropy(self.net(pixels), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        pixels, labels = batch
        scores = self.net(pixels)
        self.log("val_loss", F.cross_entropy(scores, labels))
        self.log("val_accuracy", (scores.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


L.seed_everything(0)
digits = load_digits()
rows = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
train, held_out = random_split(rows, [len(rows) - 400, 400])
trainer = L.Trainer(
    max_epochs=20,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    callbacks=[OptwatchCallback(name="lightning-digits")],  # the one line
)
trainer.fit(Digits(lr=1e-3), DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, 400))
print(f"held-out accuracy {float(trainer.callback_metrics['val_accuracy']):.3f}")
