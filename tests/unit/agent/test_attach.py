"""What can be attached to, where the steps begin, and that nothing is left."""

import copy
import gc
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import optwatch
from optwatch.wire.frames import agent_decoder, pack, unpack
from optwatch.wire.messages import Hello
from optwatch_agent import losses
from optwatch_agent.attach import innermost
from tests.unit.agent.models import batches, classifier, train
from tests.unit.agent.observed import watched


def test_nothing_is_left_where_the_last_step_raised() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    watch = optwatch.attach(optimizer)

    def fails() -> float:
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        optimizer.step(fails)
    watch.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_detaching_in_another_thread_leaves_a_step_that_is_under_way_alone() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    watch = optwatch.attach(optimizer)

    def detach(*_: Any) -> None:
        other = threading.Thread(target=watch.detach)
        other.start()
        other.join(60)

    optimizer.register_step_pre_hook(detach)
    optimizer.step()
    optimizer.step()


def test_resumed_steps_go_on() -> None:
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, batches(), 7)
    watch, rows = watched(optimizer)
    train(model, optimizer, batches(), 1)
    watch.detach()
    assert rows.steps == [8]
    watch, rows = watched(optimizer, step=100)
    train(model, optimizer, batches(), 1)
    watch.detach()
    assert rows.steps == [101]


@pytest.mark.parametrize("distributed", [False, True])
def test_steps_go_on_where_a_checkpoint_was_saved_that_is_loaded_after_attaching(distributed: bool) -> None:
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, batches(), 7)
    optimizer.zero_grad()
    saved = get_optimizer_state_dict(model, optimizer) if distributed else optimizer.state_dict()
    fresh = classifier()
    other = torch.optim.AdamW(fresh.parameters(), lr=1e-3)
    watch, rows = watched(other)
    if distributed:  # it takes a step of its own, to make the state
        set_optimizer_state_dict(fresh, other, saved)
    else:
        other.load_state_dict(saved)
    train(fresh, other, batches(), 2)
    other.load_state_dict(optimizer.state_dict())  # the run goes back, its steps do not
    train(fresh, other, batches(), 1)
    watch.detach()
    assert rows.steps == [8, 9, 10]
    assert not other._optimizer_load_state_dict_post_hooks
    watch, rows = watched(other, step=100)
    other.load_state_dict(saved if not distributed else optimizer.state_dict())
    train(fresh, other, batches(), 1)
    watch.detach()
    assert rows.steps == [101]


class Sparing(torch.optim.Optimizer):
    """Has no more than the hooks of steps, and is copied with all that it has."""

    def __init__(self, params: Any) -> None:
        self.param_groups, self.state, self.defaults = [{"params": list(params), "lr": 0.1}], {}, {}  # type: ignore[assignment]
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self._patch_step_function()

    def __getstate__(self) -> Any:
        return self.__dict__

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in self.param_groups[0]["params"]:
            param.sub_(param.grad)


def test_an_optimizer_with_the_hooks_of_steps_alone_is_watched_and_copied() -> None:
    model = classifier()
    optimizer = Sparing(model.parameters())
    watch, rows = watched(optimizer)
    train(model, optimizer, batches(), 2)
    copy.deepcopy(optimizer)
    watch.detach()
    assert rows.steps == [1, 2]
    assert not optimizer._optimizer_step_post_hooks


def test_numbers_of_numpy_are_told_as_numbers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=np.float64(0.5))
    watch, rows = watched(optimizer, config={"decay": np.float64(0.25), "seed": np.int64(7)})
    (message,) = pack(watch._agent.hello())
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float32(0.25)
    optimizer.step()
    watch.detach()
    assert rows.column("lr") == [0.5, 0.25]
    hello, _ = unpack([message], agent_decoder)
    assert isinstance(hello, Hello)
    assert hello.config == {"decay": 0.25, "seed": 7}
    assert hello.optimizers[0].groups[0].options["lr"] == 0.5


@pytest.mark.parametrize("count", [-5.0, 1e18, float("nan"), float("inf")])
def test_a_count_that_is_none_begins_at_zero(count: float) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] = torch.tensor(count)
    watch = optwatch.attach(optimizer)
    assert watch._agent.tracks[0].completed == 0
    watch.detach()


def test_wrong_calls_say_so() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    threads = threading.active_count()
    for call, error, says in (
        (lambda: optwatch.attach(nn.Linear(2, 2)), TypeError, "takes a torch.optim.Optimizer"),
        (lambda: optwatch.attach("adam"), TypeError, "not str"),
        (lambda: optwatch.attach({}), ValueError, "empty"),
        (lambda: optwatch.attach({"a": optimizer, "b": optimizer}), ValueError, "under two names"),
        (lambda: optwatch.attach(dict.fromkeys(range(65), optimizer)), ValueError, "under two names"),
        (lambda: optwatch.attach(optimizer, daemon="nonsense"), ValueError, "an address looks like"),
        (lambda: optwatch.attach(optimizer, allow="clip"), ValueError, "sequence"),
        (lambda: optwatch.attach(optimizer, allow=("explode",)), ValueError, "unknown action"),
        (lambda: optwatch.attach(optimizer, budget=0), ValueError, "share of the step time"),
        (lambda: optwatch.attach(optimizer, loss="mine"), ValueError, "auto"),
        (lambda: optwatch.attach(optimizer, step=-1), ValueError, "completed steps"),
        (lambda: optwatch.attach(optimizer, step=1 << 60), ValueError, "completed steps"),
        (lambda: optwatch.attach(optimizer, model=3), TypeError, "torch.nn.Module"),
        (lambda: optwatch.attach(optimizer, config=[1]), TypeError, "mapping"),
    ):
        with pytest.raises(error, match=says):
            call()
    assert threading.active_count() == threads


class Container(torch.optim.Optimizer):
    """Steps the optimizers of several models, as torchtitan's does."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
        super().__init__([p for model in models for p in model.parameters()], {"lr": 1e-3})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize(
    ("models", "names"), [(1, ["optimizer"]), (2, ["optimizer 0", "optimizer 1"])], ids=str
)
def test_what_a_container_steps_is_watched(models: int, names: list[str]) -> None:
    parts: list[nn.Module] = [classifier() for _ in range(models)]
    container = Container(parts)
    accelerated = type("Accelerated", (), {"optimizer": container})()
    for given in (container, accelerated):
        watch = optwatch.attach(given, budget=1.0)
        assert [track.name for track in watch._agent.tracks] == names
        assert [track.optimizer for track in watch._agent.tracks] == container.optimizers
        for part in parts:
            part(torch.ones(2, 12)).sum().backward()
        container.step()
        watch.detach()
        assert not container._optimizer_step_pre_hooks


def test_an_optimizer_that_works_itself_is_no_container() -> None:
    optimizer: Any = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    helper = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for held in ([helper], [optimizer, helper]):
        optimizer.optimizers = held
        watch = optwatch.attach(optimizer)
        assert [track.optimizer for track in watch._agent.tracks] == [optimizer]
        watch.detach()
    both = Container([classifier(), classifier()])
    with pytest.raises(ValueError, match="two optimizers under the name 'a 1'"):
        optwatch.attach({"a": both, "a 1": helper})


def test_wrappers_are_unwrapped() -> None:
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    watch = optwatch.attach(Wrapper(Wrapper(inner)))
    assert watch._agent.tracks[0].optimizer is inner
    watch.detach()


def test_what_is_dropped_is_not_kept_alive() -> None:
    """And the next attachment ends what watched it: a sweep leaves no threads behind."""

    def training() -> list["weakref.ref[Any]"]:
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters())
        optwatch.attach(optimizer, model=model, name="sweep", budget=1.0, snapshots=1 << 20)
        train(model, optimizer, batches(), 3)
        model(torch.zeros(2, 12))  # a pass that no step follows
        return [weakref.ref(optimizer), weakref.ref(model), *map(weakref.ref, model.parameters())]

    before = set(threading.enumerate())
    gone = [ref for _ in range(3) for ref in training()]
    gc.collect()
    assert {ref() for ref in gone} == {None}
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters())
    watch = optwatch.attach(optimizer, name="sweep")
    watch.detach()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert set(threading.enumerate()) <= before
    assert losses.TAP.patches[0].users == 0


def test_after_detach_a_model_is_freed_at_once() -> None:
    """As a script needs that has switched the collector off, or waits for a device's memory."""
    warm = classifier()
    train(warm, torch.optim.Adam(warm.parameters()), batches(), 1)
    gc.collect()
    gc.disable()
    try:
        model = classifier()
        optimizer = torch.optim.Adam(model.parameters())
        watch = optwatch.attach(optimizer, model=model, budget=1.0, guard=("clip",), snapshots=1 << 20)
        train(model, optimizer, batches(), 5)
        watch.detach()
        refs = [weakref.ref(optimizer), weakref.ref(model), *map(weakref.ref, model.parameters())]
        del model, optimizer
        assert {ref() for ref in refs} == {None}
    finally:
        gc.enable()


def test_an_attachment_that_fails_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def children(self) -> Any:
            raise RuntimeError("there are none to be had")

    model = classifier()
    optimizer = torch.optim.Adam(model.parameters())
    before = set(threading.enumerate())
    watch = optwatch.attach(optimizer, model=Odd())
    assert "attaching failed, nothing is watched" in caplog.text
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert losses.TAP.patches[0].users == 0
    assert set(threading.enumerate()) <= before
    watch.log(loss=1.0)
    watch.detach()


def test_attaching_anew_continues_the_run_with_one_attachment() -> None:
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters())
    first, rows = watched(optimizer, name="again")
    train(model, optimizer, batches(), 2)
    second, more = watched(optimizer, name="again")
    train(model, optimizer, batches(), 2)
    assert first.run == second.run
    assert (rows.steps, more.steps) == ([1, 2], [3, 4])
    assert len(optimizer._optimizer_step_post_hooks) == 1
    second.detach()


def test_an_optimizer_that_keeps_another_for_other_parameters_is_watched_itself() -> None:
    """As one for matrices does that leaves the rest to AdamW."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.opt = torch.optim.AdamW([nn.Parameter(torch.ones(2))])  # type: ignore[attr-defined]
    assert innermost(optimizer) is optimizer
    around = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1)
    around.opt = optimizer  # type: ignore[attr-defined]
    assert innermost(around) is optimizer
