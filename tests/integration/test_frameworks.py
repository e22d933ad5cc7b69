"""Hugging Face, Lightning and Accelerate themselves, with tiny models, and a daemon that records them."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import optwatch
from tests.daemons import DaemonProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # the frameworks' own
]
GROUP = "needs the frameworks: pip install --group integrations"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def series(daemon: DaemonProcess, name: str) -> dict[str, list[float]]:
    """The values that were logged, by column."""
    with daemon.client() as client:
        columns, rows = client.series(name)
    logged = {c: rows.values[:, i][rows.logged[:, i] != 0] for i, c in enumerate(columns.columns)}
    return {"step": rows.step.tolist()} | {c: values.tolist() for c, values in logged.items()}


def are_among(some: list[float], others: list[float]) -> bool:
    """Whether each number is one of the others, as far as fp32 tells."""
    return bool(some) and all(any(math.isclose(x, y, rel_tol=1e-4) for y in others) for x in some)


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


# --- Hugging Face ---------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A model that knows nothing of the Trainer's `num_items_in_batch`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.last(self.first(x).tanh())
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def language_model() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason=GROUP)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=8, n_embd=16, n_layer=1, n_head=2, loss_type="ForCausalLMLoss"
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def rows_for(kind: str, count: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    if kind == "classifier":
        x = torch.randn(count, 6, generator=generator)
        return [{"x": row, "labels": (row.sum() > 0).long()} for row in x]
    tokens = torch.randint(0, 17, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(
    kind: str, directory: Path, rows: list[dict[str, Tensor]], callbacks: list[Any], **arguments: Any
) -> Any:
    transformers = pytest.importorskip("transformers", reason=GROUP)
    torch.manual_seed(0)
    model = Classifier() if kind == "classifier" else language_model()
    options = {
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    optimizers = arguments.pop("optimizers", None)
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(directory), **(options | arguments)),
        train_dataset=rows,
        eval_dataset=rows[:8],
        callbacks=callbacks,
        optimizers=(optimizers(model), None) if optimizers else (None, None),
    )


@pytest.mark.parametrize("kind", ["classifier", "language model"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_hugging_face(daemon: DaemonProcess, tmp_path: Path, kind: str, accumulated: int) -> None:
    """What is seen at each step is what the Trainer logs; and it trains bit by bit the same."""
    pytest.importorskip("transformers", reason=GROUP)
    from optwatch_agent.huggingface import OptwatchCallback

    rows = rows_for(kind, 64)
    arguments = {
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "max_grad_norm": 0.1,
    }
    plain = trainer(kind, tmp_path, rows, [], **arguments)
    plain.train()
    watched = trainer(
        kind, tmp_path, rows, [OptwatchCallback(name="hf", config={"a": 1}, budget=1.0)], **arguments
    )
    watched.train()
    assert digest(watched.model) == digest(plain.model)
    history = watched.state.log_history
    seen = series(daemon, "hf")
    assert seen["step"] == list(range(1, 32 // accumulated + 1))
    assert seen["loss"] == pytest.approx([entry["loss"] for entry in history if "loss" in entry], rel=2e-3)
    assert seen["lr"] == pytest.approx(
        [entry["learning_rate"] for entry in history if "loss" in entry], rel=1e-6
    )
    logged = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert seen["val_loss"] == pytest.approx(logged[: len(seen["val_loss"])])
    assert len(seen["val_loss"]) >= 1
    assert "val_runtime" not in seen
    raw = [entry["grad_norm"] for entry in history if "grad_norm" in entry]
    assert are_among(seen["grad_norm_raw"], raw)


def test_hugging_face_hides_a_nan_and_we_do_not(daemon: DaemonProcess, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason=GROUP)
    from optwatch_agent.huggingface import OptwatchCallback

    rows = rows_for("classifier", 64)
    rows[40] = {"x": torch.full((6,), math.nan), "labels": torch.tensor(0)}
    training = trainer(
        "classifier", tmp_path, rows, [OptwatchCallback(name="nan")], num_train_epochs=1, seed=3
    )
    training.train()
    log = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert all(map(math.isfinite, log)), "the Trainer's own log hides it"
    assert any(map(math.isnan, series(daemon, "nan")["loss"]))
    with daemon.client() as client:
        kinds = [finding.kind for finding in client.findings("nan")]
    assert "non_finite" in kinds


@pytest.mark.parametrize("kind", ["classifier", "language model"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_one_line_with_hugging_face(
    daemon: DaemonProcess, tmp_path: Path, kind: str, accumulated: int
) -> None:
    """An optimizer that was attached to before the Trainer took it. The Trainer divides the losses of a
    classifier by the passes of a step, and those of a language model by their tokens."""
    watches = []

    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watches.append(optwatch.attach(optimizer, name="line"))
        return optimizer

    arguments = {"num_train_epochs": 1, "gradient_accumulation_steps": accumulated}
    training = trainer(kind, tmp_path, rows_for(kind, 64), [], optimizers=made, **arguments)
    training.train()
    watches[0].detach()
    log = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert series(daemon, "line")["loss"] == pytest.approx(log, rel=2e-3)


def test_hugging_face_by_layers(daemon: DaemonProcess, tmp_path: Path) -> None:
    """As with `galore_adamw_layerwise`: the Trainer has an optimizer that does nothing, and hooks of the
    parameters step their own within backward."""
    trainer_utils = pytest.importorskip("transformers.trainer_pt_utils", reason=GROUP)
    from optwatch_agent.huggingface import OptwatchCallback

    def layer_wise(model: nn.Module) -> torch.optim.Optimizer:
        own = {param: torch.optim.AdamW([param], lr=1e-3) for param in model.parameters()}

        def step(param: Tensor) -> None:
            own[param].step()
            own[param].zero_grad()

        for param in own:
            param.register_post_accumulate_grad_hook(step)
        made: torch.optim.Optimizer = trainer_utils.LayerWiseDummyOptimizer(optimizer_dict=own, lr=1e-3)
        return made

    rows = rows_for("language model", 64)
    arguments = {"num_train_epochs": 1, "optimizers": layer_wise, "max_grad_norm": 0.0}
    plain = trainer("language model", tmp_path, rows, [], **arguments)
    plain.train()
    watched = trainer(
        "language model", tmp_path, rows, [OptwatchCallback(name="layers", budget=1.0)], **arguments
    )
    watched.train()
    assert digest(watched.model) == digest(plain.model)
    seen = series(daemon, "layers")
    log = [entry["loss"] for entry in watched.state.log_history if "loss" in entry]
    assert seen["step"] == list(range(1, 17))
    assert seen["loss"] == pytest.approx(log, rel=2e-3)
    assert len(seen["grad_norm"]) > 5
    with daemon.client() as client:
        (optimizer,) = client.status("layers").optimizers
    assert optimizer.kind == "AdamW"


# --- Lightning ------------------------------------------------------------------------------------------


def batches(count: int) -> Any:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(TensorDataset(torch.randn(count, 6, generator=generator)), batch_size=4)


def modules() -> dict[str, type[Any]]:
    L = pytest.importorskip("lightning", reason=GROUP)

    class Automatic(L.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, attach: bool = False) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 1))
            self.losses: list[float] = []
            self.validated: list[float] = []

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = (self.net(batch[0]) - 1).square().mean()
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("valid/loss", (self.net(batch[0]) - 1).square().mean())

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.validated.append(float(self.trainer.callback_metrics["valid/loss"]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            if self.hparams["attach"]:
                self.watch = optwatch.attach(optimizer, name="line")
            return optimizer

    class Manual(Automatic):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = nn.Linear(6, 1)

        def training_step(self, batch: Any, index: int) -> None:
            for net, optimizer in zip((self.net, self.other), self.optimizers(), strict=True):
                loss = (net(batch[0]) - 1).square().mean()
                self.losses.append(loss.item())
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(self.net.parameters(), lr=0.01),
                torch.optim.SGD(self.other.parameters(), lr=0.01),
            ]

    return {"automatic": Automatic, "manual": Manual}


def fit(directory: Path, module: Any, callbacks: list[Any], **options: Any) -> Any:
    L = pytest.importorskip("lightning", reason=GROUP)
    torch.manual_seed(0)
    L.Trainer(
        max_epochs=3, callbacks=callbacks, accelerator="cpu", logger=False, default_root_dir=directory,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    ).fit(module, batches(64), batches(16))  # fmt: skip
    return module


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("way", ["callback", "line"])
def test_lightning(daemon: DaemonProcess, tmp_path: Path, accumulated: int, way: str) -> None:
    Automatic = modules()["automatic"]
    from optwatch_agent.lightning import OptwatchCallback

    torch.manual_seed(0)
    plain = fit(tmp_path, Automatic(), [], accumulate_grad_batches=accumulated)
    torch.manual_seed(0)
    callbacks = [OptwatchCallback(name="line")] if way == "callback" else []
    module = fit(tmp_path, Automatic(way == "line"), callbacks, accumulate_grad_batches=accumulated)
    if way == "line":
        module.watch.detach()
    assert digest(module) == digest(plain)
    seen = series(daemon, "line")
    assert seen["step"] == list(range(1, 48 // accumulated + 1))
    means = torch.tensor(module.losses, dtype=torch.float64).view(-1, accumulated).mean(1)
    assert seen["loss"] == pytest.approx(means.tolist(), rel=1e-5)
    if way == "callback":
        assert seen["val_loss"] == pytest.approx(module.validated[: len(seen["val_loss"])])
        assert len(seen["val_loss"]) >= 2


def test_lightning_by_hand_with_two_optimizers(daemon: DaemonProcess, tmp_path: Path) -> None:
    Manual = modules()["manual"]
    from optwatch_agent.lightning import OptwatchCallback

    torch.manual_seed(0)
    plain = fit(tmp_path, Manual(), [])
    torch.manual_seed(0)
    module = fit(tmp_path, Manual(), [OptwatchCallback(name="two")])
    assert digest(module) == digest(plain)
    with daemon.client() as client:
        status = client.status("two")
    assert [optimizer.kind for optimizer in status.optimizers] == ["Adam", "SGD"]
    seen = series(daemon, "two")
    assert seen["step"] == list(range(1, 49))
    assert seen["loss"] == module.losses[::2]


# --- Accelerate -----------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate", reason=GROUP)
    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.mark.parametrize("before", [True, False], ids=["attached before prepare", "attached after"])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_accelerate(daemon: DaemonProcess, accelerator: Any, before: bool, accumulated: int) -> None:
    accelerate = accelerator(gradient_accumulation_steps=accumulated)
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.01)
    if before:
        watch = optwatch.attach(optimizer, name="accelerate", budget=1.0)
    model, optimizer, loader = accelerate.prepare(model, optimizer, batches(64))
    if not before:
        watch = optwatch.attach(optimizer, model=model, name="accelerate", budget=1.0)
    losses, norms = [], []
    for _ in range(2):
        for (x,) in loader:
            with accelerate.accumulate(model):
                loss = (model(x) - 1).square().mean()
                losses.append(loss.item())
                accelerate.backward(loss)
                if accelerate.sync_gradients:
                    norms.append(float(accelerate.clip_grad_norm_(model.parameters(), 0.1)))
                optimizer.step()
                optimizer.zero_grad()
    watch.detach()
    seen = series(daemon, "accelerate")
    assert seen["step"] == list(range(1, 32 // accumulated + 1))
    means = torch.tensor(losses, dtype=torch.float64).view(-1, accumulated).mean(1)
    assert seen["loss"] == pytest.approx(means.tolist(), rel=1e-5)
    assert len(seen["grad_norm_raw"]) > 3
    assert are_among(seen["grad_norm_raw"], norms)
