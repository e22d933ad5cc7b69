"""Handwritten digits to be restored from noise: scikit-learn's bundled data, split once and for all."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

HELD_OUT = 500


@dataclass(frozen=True)
class Digits:
    """Images as rows of 64 pixels, float32, centred per pixel, of unit variance over all.

    `train` [1297, 64]; `held_out` [500, 64] and `held_out_noisy`, the same ones under fixed noise.
    """

    train: torch.Tensor
    held_out: torch.Tensor
    held_out_noisy: torch.Tensor


def load(noise: float) -> Digits:
    """The digits. Split and held-out noise (standard deviation `noise`) are the same in every training."""
    generator = torch.Generator().manual_seed(1234)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    train = pixels[:-HELD_OUT]
    pixels = (pixels - train.mean(dim=0)) / train.std()
    held_out = pixels[-HELD_OUT:]
    disturbance = noise * torch.randn(held_out.shape, generator=generator)
    return Digits(pixels[:-HELD_OUT], held_out, held_out + disturbance)
