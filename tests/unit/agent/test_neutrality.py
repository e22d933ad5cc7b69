"""An observing agent changes no bit of a training, and leaves nothing behind."""

import copy
import gc
import itertools
import os
import pickle
import random
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import optwatch
from tests.unit.agent.models import OPTIMIZERS, batches, classifier, fingerprint, train
from tests.unit.agent.observed import measure_always, samples_of

STEPS = 200


FAST = [
    ("adamw", "foreach", "order"),
    ("adamw", "foreach", "amp"),
    ("adamw", "fused", "amp"),
    *(
        (name, "foreach", "dropout")
        for name in ("momentum", "adam", "rmsprop-centered", "adadelta", "adafactor")
    ),
    *((name, "fused", "dropout") for name in ("nesterov", "amsgrad", "adagrad")),
    ("muon", "for-loop", "dropout"),
]
"""A representative part of all combinations; the others are for the slow suite."""


def matrix() -> list[Any]:
    every = itertools.product(OPTIMIZERS, ("foreach", "fused", "for-loop"), ("order", "dropout", "amp"))
    return [
        pytest.param(*each, marks=() if each in FAST else pytest.mark.slow, id="-".join(each))
        for each in every
    ]


def build(name: str, way: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = classifier()
    options: dict[str, Any] = {"fused": True} if way == "fused" else {"foreach": way == "foreach"}
    if way == "for-loop" and name == "muon":  # it knows no other way
        options = {}
    try:
        return model, OPTIMIZERS[name](model.parameters(), **options)
    except (TypeError, RuntimeError):
        pytest.skip(f"there is no {way} {name}")


def training(name: str, way: str, setting: str, watched: bool) -> list[Any]:
    """Train; every bit that is left. `order`: batches drawn with the global generators of torch, numpy and
    Python. `dropout`: masks from the global generator. `amp`: bfloat16 autocast under a GradScaler whose
    first scales overflow."""
    random.seed(0)
    np.random.seed(0)
    model, optimizer = build(name, way)
    model.train(setting == "dropout")
    x, y = next(batches())
    scaler = torch.amp.GradScaler("cpu", enabled=setting == "amp", init_scale=2.0**127, growth_interval=50)
    watch = optwatch.attach(optimizer, model=model) if watched else None
    taken: dict[int, Any] = {}
    if watch is not None:
        measure_always(watch)
        taken = samples_of(watch)
    for _ in range(STEPS):
        rows = torch.arange(len(x))
        if setting == "order":
            rows = torch.randperm(len(x))[: 8 + random.randrange(8)]
            rows = rows[np.random.permutation(len(rows))]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "amp"):
            loss = nn.functional.cross_entropy(model(x[rows]).float(), y[rows])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    if watch is not None:
        assert len(taken) > STEPS // 2, "it was measured"
        watch.detach()
    return [*fingerprint(model, optimizer), scaler.state_dict()]


@pytest.mark.parametrize(("name", "way", "setting"), matrix())
def test_parameters_state_and_generators_are_bitwise_equal(name: str, way: str, setting: str) -> None:
    assert training(name, way, setting, watched=True) == training(name, way, setting, watched=False)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_are_bitwise_equal(kind: Any) -> None:
    def run(watched: bool) -> list[Any]:
        torch.manual_seed(0)
        table = nn.Embedding(50, 8, sparse=True)
        optimizer = kind(table.parameters(), lr=0.1)
        watch = optwatch.attach(optimizer, model=table) if watched else None
        taken: dict[int, Any] = {}
        if watch is not None:
            measure_always(watch)
            taken = samples_of(watch)
        for _ in range(50):
            optimizer.zero_grad()
            table(torch.randint(0, 50, (9,))).square().sum().backward()
            optimizer.step()
        if watch is not None:
            assert len(taken) > 25
            assert not watch._agent.tracks[0].degraded
            watch.detach()
        return fingerprint(table, optimizer)

    assert run(watched=True) == run(watched=False)


def amp_training(watched: bool) -> list[Any]:
    """float16 autocast with a scaler whose first scale overflows, accumulation of two and clipping."""
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=20)
    data = batches()
    watch = optwatch.attach(optimizer, budget=1.0) if watched else None
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(2):
            x, y = next(data)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = nn.functional.cross_entropy(model(x).float(), y) / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
    if watch is not None:
        watch.detach()
    return [*fingerprint(model, optimizer), scaler.state_dict()]


def test_amp_is_bitwise_equal() -> None:
    assert amp_training(watched=True) == amp_training(watched=False)


def closure_training(watched: bool) -> list[Any]:
    model = classifier()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    data = batches()
    watch = optwatch.attach(optimizer, budget=1.0) if watched else None
    for _ in range(30):
        x, y = next(data)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)  # noqa: B023 - called at once
            loss.backward()
            return loss

        optimizer.step(closure)
    if watch is not None:
        watch.detach()
    return fingerprint(model, optimizer)


def test_closures_are_bitwise_equal() -> None:
    assert closure_training(watched=True) == closure_training(watched=False)


def traces(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Everything that an attachment could leave behind."""
    return [
        {key: id(value) for key, value in vars(optimizer).items()},
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
        len(optimizer._optimizer_load_state_dict_post_hooks),
        [sorted(map(str, group)) for group in optimizer.param_groups],
        torch.autograd.backward,
        torch.amp.grad_scaler.GradScaler.scale,
        torch.amp.grad_scaler.GradScaler.update,
        torch.nn.utils.clip_grad_norm_,
        torch.nn.utils.clip_grad._clip_grads_with_norm_,
        type(optimizer).step,
        sorted(thread.name for thread in threading.enumerate()),
        len(os.listdir("/proc/self/fd")),
    ]


@pytest.fixture
def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = classifier()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_detach_leaves_nothing(model_and_optimizer: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    model, optimizer = model_and_optimizer
    before = traces(optimizer)
    watch = optwatch.attach(optimizer, model=model)
    assert traces(optimizer) != before
    train(model, optimizer, batches(), 20)
    watch.detach()
    assert traces(optimizer) == before
    watch.detach()
    assert traces(optimizer) == before


def test_two_attachments_come_and_go_in_any_order() -> None:
    first, second = classifier(), classifier(1)
    one = torch.optim.SGD(first.parameters(), lr=0.1)
    two = torch.optim.SGD(second.parameters(), lr=0.1)
    before = traces(one), traces(two)
    watch_one, watch_two = optwatch.attach(one), optwatch.attach(two)
    assert watch_one.run != watch_two.run
    watch_one.detach()
    train(second, two, batches(), 3)
    watch_two.detach()
    assert (traces(one), traces(two)) == before


def test_attaching_again_continues_the_run(
    model_and_optimizer: tuple[nn.Module, torch.optim.Optimizer],
) -> None:
    model, optimizer = model_and_optimizer
    with optwatch.attach(optimizer) as first:
        train(model, optimizer, batches(), 5)
    with optwatch.attach(optimizer) as second:
        assert second.run == first.run


def test_an_optimizer_under_watch_can_be_copied_pickled_and_restored(
    model_and_optimizer: tuple[nn.Module, torch.optim.Optimizer],
) -> None:
    model, optimizer = model_and_optimizer
    data = batches()
    with optwatch.attach(optimizer, model=model, budget=1.0):
        train(model, optimizer, data, 5)
        twin = copy.deepcopy(optimizer)
        again = pickle.loads(pickle.dumps(optimizer))
        assert not twin._optimizer_step_pre_hooks
        assert not again._optimizer_step_pre_hooks
        assert "step" not in vars(twin)
        saved = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
        rng = torch.get_rng_state()
        train(model, optimizer, batches(7), 5)
        once = fingerprint(model, optimizer)
        optimizer.load_state_dict(saved[0])
        model.load_state_dict(saved[1])
        torch.set_rng_state(rng)
        train(model, optimizer, batches(7), 5)
        assert fingerprint(model, optimizer) == once


def test_a_detached_agent_is_collected(
    model_and_optimizer: tuple[nn.Module, torch.optim.Optimizer],
) -> None:
    model, optimizer = model_and_optimizer
    watch = optwatch.attach(optimizer, model=model)
    train(model, optimizer, batches(), 3)
    agent = weakref.ref(watch._agent)
    watch.detach()
    del watch
    gc.collect()
    assert agent() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_can_be_resized_as_before(dtype: torch.dtype) -> None:
    """Some set the storage of a parameter or gradient to nothing between steps; `Tensor.numpy` forbids it."""
    torch.manual_seed(0)
    model = nn.Linear(300, 200, dtype=dtype)
    optimizer = torch.optim.Adam(model.parameters())
    with optwatch.attach(optimizer, model=model) as watch:
        measure_always(watch)
        taken = samples_of(watch)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(4, 300, dtype=dtype)).square().sum().backward()
            optimizer.step()
    assert len(taken) > 10
    for param in model.parameters():
        for tensor in (param, param.grad, *optimizer.state[param].values()):
            tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize("name", ["adam", "adadelta", "adafactor"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e160])
def test_float64_of_any_size_is_read_and_never_written(name: str, scale: float) -> None:
    """What is converted to float64 to be measured may be the very tensor that is trained."""

    def run(watched: bool) -> list[Any]:
        model = classifier(dtype=torch.float64)
        optimizer = OPTIMIZERS[name](model.parameters())
        watch = optwatch.attach(optimizer) if watched else None
        taken = {}
        if watch is not None:
            measure_always(watch)
            taken = samples_of(watch)
        data = batches(dtype=torch.float64)
        grads = []
        for _ in range(10):
            x, y = next(data)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), y) * scale).backward()
            optimizer.step()
            grads += [p.grad.clone() for p in model.parameters()]
        if watch is not None:
            assert len(taken) >= 7
            watch.detach()
        return [*fingerprint(model, optimizer), [grad.numpy().tobytes() for grad in grads]]

    assert run(watched=True) == run(watched=False)
