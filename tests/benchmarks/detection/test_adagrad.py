"""A cause that no fault of the benchmark has, on a real training: Adagrad's step fades away."""

import torch

from tests.benchmarks.detection.faults import detect
from tests.benchmarks.detection.trainings import Cell, Training


def test_an_adagrad_whose_step_has_faded_is_the_wrong_optimizer() -> None:
    """Digits of which 40 % have a wrong label, so that the loss turns flat within the 600 steps."""
    torch.set_num_threads(1)
    training = Training(Cell("mlp", "noisy_labels", 0))
    training.lr = 0.01
    training.optimizer = torch.optim.Adagrad(training.model.parameters(), training.lr)
    plateau = next(found for found in detect(training.run(), "run") if found.kind == "plateau")
    cause = plateau.causes[0]
    assert cause.cause == "wrong_optimizer"
    assert "faded to 1/" in cause.because
    assert "Adagrad" in plateau.remedies[0].why
