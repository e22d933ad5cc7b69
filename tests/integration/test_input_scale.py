"""Raw pixels into a net with a lively learning rate: the daemon names the scale of the input as a cause."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import optwatch
from tests.daemons import DaemonProcess


def test_raw_pixels_are_named_as_a_cause(daemon: DaemonProcess) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1234)
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32) * 16  # 0 to 256
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with optwatch.attach(optimizer, model=model, name="raw"):
        for _ in range(300):
            batch = torch.randint(len(pixels), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    with daemon.client() as client:
        findings = client.findings("raw")
    because = {
        cause.because for finding in findings for cause in finding.causes if cause.cause == "unscaled_inputs"
    }
    assert any("the input has mean" in reason for reason in because)
