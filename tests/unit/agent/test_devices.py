"""What is reported of a training on a device, with the CPU in its place: late, never waited for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import optwatch
from optwatch.wire.frames import BatchBlocks
from optwatch.wire.messages import STATS, Schema
from optwatch_agent import Watch, device_norms, device_sums, device_time, rows, tensors
from optwatch_agent.device_time import DeviceTime
from optwatch_agent.gradients import Gradients
from optwatch_agent.parts import Key, Parts
from optwatch_agent.phases import BACKWARD_ENDS
from optwatch_agent.probe import measure, take
from optwatch_agent.roles import roles_of
from tests.unit.agent.elsewhere import Device, NoWait, device
from tests.unit.agent.models import OPTIMIZERS, WITHOUT_RULE, batches, classifier, fingerprint, train
from tests.unit.agent.observed import Hand, measure_always, samples_of
from tests.unit.agent.test_joint import Training

__all__ = ["device"]


class Sent:
    """What the link's thread would take of the first optimizer; taken by the test itself."""

    def __init__(self, watch: Watch) -> None:
        self._recorder = watch._agent.tracks[0].recorder
        self._take = self._recorder.take
        self._recorder.take = lambda session, everything: []  # type: ignore[method-assign]
        self.values: dict[int, dict[str, float]] = {}
        self.samples: dict[int, Any] = {}
        self.order: list[int] = []

    def look(self, everything: bool = False) -> None:
        for schema, _, blocks in self._take("", everything):
            self._add(schema, blocks)

    def _add(self, schema: Schema, blocks: BatchBlocks) -> None:
        for i, step in enumerate(blocks.step.tolist()):
            self.order.append(step)
            self.values[step] = {
                name: float(blocks.scalars[i, j])
                for j, name in enumerate(schema.scalars)
                if j < blocks.logged.shape[1] and blocks.logged[i, j]
            }
        for i, step in enumerate(blocks.sample_step.tolist()):
            self.samples[step] = blocks.stats[i], blocks.counts[i]


def true_norm(model: nn.Module) -> float:
    return float(
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().norm()
    )


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("delay", [0, 1, 7])
def test_loss_norm_and_what_is_logged_arrive_with_their_step(device: Device, delay: int, quiet: bool) -> None:
    """Also of steps that nothing else is measured of."""
    device.delay = delay
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(optimizer)
    track = watch._agent.tracks[0]
    track.governor.budget = 1e-9 if quiet else 1e9
    sent = Sent(watch)
    losses, norms = [], []
    data = batches()
    for step in range(1, 31):
        losses += train(model, optimizer, data, 1)
        norms.append(true_norm(model))
        watch.log(accuracy=torch.tensor(step / 100), plain=float(step))
        sent.look()
        assert sent.order == list(range(1, len(sent.order) + 1))
        assert len(sent.order) < step, "the newest row waits for what is logged"
        assert not quiet or track._quiet == (step > 1)
    assert len(sent.order) >= 28 - 2 * delay
    assert not any(event.waited for event in device.events)
    watch.detach()
    sent.look(everything=True)
    assert sent.order == list(range(1, 31)), "the end waits"
    assert device.copies <= 31
    for step, values in sent.values.items():
        assert values["loss"] == losses[step - 1]
        assert values["accuracy"] == pytest.approx(step / 100)
        assert values["plain"] == step
        assert values["lr"] == 0.1
    seen = {step: values["grad_norm"] for step, values in sent.values.items() if "grad_norm" in values}
    assert not seen if quiet else len(seen) > 20
    assert all(norm == pytest.approx(norms[step - 1], rel=1e-6) for step, norm in seen.items())


def test_what_was_logged_anew_is_not_overwritten_by_what_arrives(device: Device) -> None:
    device.delay = 2
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(optimizer)
    sent = Sent(watch)
    for step in range(1, 9):
        train(model, optimizer, batches(), 1)
        watch.log(loss=torch.tensor(50.0))
        watch.log(loss=float(step))
    watch.detach()
    sent.look(everything=True)
    assert [values["loss"] for values in sent.values.values()] == list(range(1, 9))


def test_the_users_clipping_is_seen(device: Device) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    sent = Sent(watch)
    raw, data = [], batches()
    for _ in range(20):
        x, y = next(data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        raw.append(true_norm(model))
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimizer.step()
    watch.detach()
    sent.look(everything=True)
    last = sent.values[20]
    assert last["grad_norm_raw"] == pytest.approx(raw[-1], rel=1e-5)
    assert last["grad_norm"] == pytest.approx(min(raw[-1], 0.8), rel=1e-5)
    assert last["user_max_norm"] == 0.8
    assert last["user_clip_share"] == pytest.approx(sum(norm > 0.8 for norm in raw) / 20)
    assert 0 < last["user_clip_share"] < 1


@pytest.mark.parametrize("delay", [0, 1, 5])
@pytest.mark.parametrize("name", ["adamw", "muon", "adadelta"])
def test_samples_arrive_as_those_of_their_step(device: Device, delay: int, name: str) -> None:
    """With the norms that follow from them; where the update is seen as a difference, too."""
    device.delay = delay
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    params = list(optimizer.param_groups[0]["params"])
    watch = optwatch.attach(optimizer)
    measure_always(watch)
    sent, true, data = Sent(watch), {}, batches()
    for step in range(1, 21):
        before = [param.detach().clone() for param in params]
        train(model, optimizer, data, 1)
        updates = {i: param.detach() - old for i, (param, old) in enumerate(zip(params, before, strict=True))}
        true[step] = measure(
            optimizer, params, roles_of(optimizer), updates if name in WITHOUT_RULE else None
        )
        sent.look()
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    sent.look(everything=True)
    assert sent.order == list(range(1, 21))
    assert len(sent.samples) > 12
    measured = slice(0, STATS.index("update_rms"))
    for step, (stats, counts) in sent.samples.items():
        assert np.array_equal(stats[:, measured], true[step].stats[:, measured], equal_nan=True)
        assert np.array_equal(counts, true[step].counts)
        assert sent.values[step]["param_norm"] == true[step].param_norm
        if name not in WITHOUT_RULE:
            assert np.array_equal(stats, true[step].stats, equal_nan=True)
            assert sent.values[step]["update_norm"] == true[step].update_norm


def test_tensors_that_take_several_batches(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "NARROW", 8)
    monkeypatch.setattr(rows, "WIDE", 32)
    monkeypatch.setattr(rows, "BATCH", 128)
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 8, 9, 32, 33, 127, 128, 129, 1000, 3, 64, 31)
    params = [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    optimizer = torch.optim.Adam(params, lr=0.1)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()
    found = measure(optimizer, params, roles_of(optimizer))
    monkeypatch.setattr(tensors, "DEVICES", {"cuda"})
    on_host = measure(optimizer, params, roles_of(optimizer))
    assert np.allclose(found.stats, on_host.stats, rtol=1e-6, atol=0, equal_nan=True)
    assert np.array_equal(found.counts, on_host.counts)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "name", ["sgd", "nesterov", "adamw", "amsgrad", "nadam-decay", "radam", "rmsprop-centered"]
)
def test_on_tensors_of_cuda_without_their_numbers(
    name: str, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake ones raise where the host asks for a number, or where tensors of two devices meet.

    `capturable`: the count of steps is on the device.
    """
    monkeypatch.setattr(device_sums, "uploaded", lambda numbers, device: torch.from_numpy(numbers).to(device))
    monkeypatch.setattr(rows, "uploaded", device_sums.uploaded)
    shapes = ((3, 4), (70_000,), (5,))
    real = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    example = OPTIMIZERS[name](real, foreach=False)
    for param in real:
        param.grad = torch.ones_like(param)
    example.step()
    states = [
        {key: float(x) if type(x) is Tensor and not x.ndim else x for key, x in example.state[p].items()}
        for p in real
    ]
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]
        optimizer = OPTIMIZERS[name](params, foreach=False)
        for param, state in zip(params, states, strict=True):
            param.grad = torch.empty_like(param)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value = torch.empty(value.shape, device="cuda")
                elif value is not None and capturable:
                    value = torch.empty((), device="cuda")
                optimizer.state[param][key] = value
        taken = take(optimizer, params, roles_of(optimizer))
        norm = Gradients().norms(optimizer, None)["grad_norm"]
    assert isinstance(norm, Tensor)
    assert norm.is_cuda
    assert taken.numbers is not None
    assert taken.numbers.is_cuda
    assert taken.numbers.dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_norms_are_accurate_at_any_size_and_magnitude(dtype: torch.dtype, scale: float) -> None:
    if dtype is torch.float16:
        scale = 1.0
    generator = torch.Generator().manual_seed(0)
    tensors = [
        (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for size in (1, 100, 300_000, 7)
    ]
    true = [float(x.double().div(scale).norm()) * scale for x in tensors]
    assert device_norms.norms(tensors).tolist() == pytest.approx(true, rel=1e-7)
    assert float(device_norms.total_norm(tensors)) == pytest.approx(math.hypot(*true), rel=1e-7)


def test_a_bad_element_makes_a_norm_that_is_none() -> None:
    good, bad = torch.ones(5), torch.tensor([1.0, math.nan])
    assert math.isnan(float(device_norms.total_norm([good, bad])))
    assert device_norms.norms([good, bad]).isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    "wait", [torch.Tensor.item, bool, float, torch.nonzero, lambda x: x[x > 0], lambda x: torch.equal(x, x)]
)
def test_waits_are_noticed(wait: Any) -> None:
    with NoWait() as mode:
        wait(torch.ones(1))
    assert mode.waits


@pytest.mark.parametrize("budget", [1e9, 1e-9])
@pytest.mark.parametrize("fused", [True, False])
def test_nothing_waits_for_the_device(device: Device, fused: bool, budget: float) -> None:
    """Not a training on it, nor what is logged."""
    model = classifier()
    optimizer: Any = torch.optim.AdamW(
        model.parameters(), lr=1e-2, fused=fused, foreach=False if fused else None
    )
    watch = optwatch.attach(optimizer, model=model)
    watch._agent.tracks[0].governor.budget = budget
    mode, data = NoWait(), batches()
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        for key, hook in hooks.items():
            hooks[key] = under(mode, hook)
    for _ in range(20):
        x, y = next(data)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        with mode:
            loss.backward()
            watch.log(again=loss)
        nn.utils.clip_grad_norm_(model.parameters(), 0.8)
        optimizer.step()
    assert mode.waits == []
    assert not watch._agent.tracks[0].degraded
    watch.detach()


def under(mode: NoWait, hook: Any) -> Any:
    """A hook in this mode, and where tensors are made on some other device unless told otherwise."""

    def hooked(*args: Any) -> Any:
        with torch.device("meta"), mode:
            return hook(*args)

    return hooked


@pytest.mark.parametrize(
    "name", [name if name == "adamw" else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS]
)
def test_a_training_on_a_device_is_bitwise_the_same(device: Device, name: str) -> None:
    def run(watched: bool) -> list[Any]:
        model = classifier()
        optimizer = OPTIMIZERS[name](model.parameters())
        watch = optwatch.attach(optimizer, model=model) if watched else None
        if watch is not None:
            measure_always(watch)
        train(model, optimizer, batches(), 40)
        if watch is not None:
            assert not watch._agent.tracks[0].degraded
            watch.detach()
        return fingerprint(model, optimizer)

    assert run(watched=True) == run(watched=False)


@pytest.mark.parametrize("name", ["adamw", "adadelta", "overwrites"])
def test_optimizers_of_a_parameter_each_are_measured_as_one(device: Device, name: str) -> None:
    device.delay = 2
    seen = []
    for way in ("within", "together"):
        training = Training(name, way)
        watch = optwatch.attach(training.given)
        measure_always(watch)
        sent, samples, mode = Sent(watch), samples_of(watch), NoWait()
        of_members = [
            hooks
            for member in training.optimizers.values()
            for hooks in (member._optimizer_step_pre_hooks, member._optimizer_step_post_hooks)
        ]
        for hooks in (*of_members, BACKWARD_ENDS):
            for key, hook in hooks.items():
                hooks[key] = under(mode, hook)  # type: ignore[index]
        training.train(12)
        assert mode.waits == []
        watch.detach()
        sent.look(everything=True)
        assert not watch._agent.tracks[0].degraded
        seen.append((sent.values, samples))
    (values, samples), (of_whole, samples_of_whole) = seen
    for step in range(4, 13):
        norms = values[step]["grad_norm"], values[step]["param_norm"]
        assert norms == pytest.approx((of_whole[step]["grad_norm"], of_whole[step]["param_norm"]), rel=1e-6)
        known = ~np.isnan(samples_of_whole[step].stats)
        np.testing.assert_allclose(
            samples[step].stats[known], samples_of_whole[step].stats[known], rtol=1e-4, atol=1e-7
        )


def test_the_parts_of_a_sharded_norm(device: Device) -> None:
    """Those of a device are those of the host."""
    params = [nn.Parameter(torch.randn(n)) for n in (3, 4, 5)]
    for param in params[:2]:
        param.grad = torch.randn(param.shape)
    keys: list[Key] = [(("dp", 0, 2),), (("tp", 1, 2),), (("dp", 0, 2),)]
    parts = Parts(params, keys, {keys[0]: "a", keys[1]: "b", (("tp", 0, 2),): "c"})
    there = {name: float(value) for name, value in parts.gradients(params).items()}
    tensors.DEVICES.clear()
    here = parts.gradients(params)
    assert len(here) == 3
    assert there == pytest.approx(here, rel=1e-6)


def test_a_moment_that_is_elsewhere_is_not_taken_for_none(device: Device) -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([param], lr=0.1, momentum=0.9)
    param.grad = torch.ones(4)
    optimizer.step()
    optimizer.state[param]["momentum_buffer"] = torch.ones(4, device="meta")
    sample = measure(optimizer, [param], roles_of(optimizer))
    assert np.isnan(sample.stats[0, STATS.index("update_rms")])
    assert sample.stats[0, STATS.index("grad_rms")] == 1.0
    assert sample.update_norm is None


@pytest.mark.parametrize("delay", [0, 6])
def test_the_command_clip_works_there(device: Device, delay: int) -> None:
    """Bit for bit the same whenever the host hears of it; what it did comes with its step."""

    def run() -> tuple[list[Tensor], Sent]:
        model = classifier()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = optwatch.attach(optimizer)
        measure_always(watch)
        sent, hand, data = Sent(watch), Hand(watch._agent), batches()
        for step in range(1, 61):
            if step == 21:
                hand.command("clip", max_norm=0.3, adapt=True)
            x, y = next(data)
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), y) * (100 if step > 50 else 1)).backward()
            optimizer.step()
            assert step <= 20 or true_norm(model) <= 1.0
        assert not watch._agent.tracks[0].degraded
        assert [state for _, state, _ in hand.outcomes()][-1] == "applied"
        watch.detach()
        sent.look(everything=True)
        return [param.detach().clone() for param in model.parameters()], sent

    device.delay = delay
    params, sent = run()
    device.delay = 0
    at_once, _ = run()
    assert all(torch.equal(one, other) for one, other in zip(params, at_once, strict=True))
    assert "clip" not in sent.values[20]
    assert sent.values[21]["clip"] == 0.3
    assert sent.values[60]["clip"] != 0.3, "it follows what is usual"
    for step in range(21, 61):
        values = sent.values[step]
        assert values["grad_norm"] <= values["grad_norm_raw"] * (1 + 1e-9)
    assert sent.values[60]["grad_norm"] < 1.0 < sent.values[60]["grad_norm_raw"]


def test_gradients_on_the_host_and_on_a_device(device: Device) -> None:
    """Here on two types of device; what is on neither makes no norm."""

    def found(elsewhere: str) -> dict[str, Any]:
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, device=elsewhere))]
        for param in params:
            param.grad = torch.full_like(param, 2.0)
        return Gradients().norms(torch.optim.SGD(params, lr=0.1), None)

    assert found("meta") == {}
    norm = found("cpu")["grad_norm"]
    assert isinstance(norm, Tensor)
    assert float(norm) == pytest.approx(math.sqrt(20))


class Clock:
    """The device's time, of which events tell when they were recorded, and later that they have passed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passed = False

    def recorded(self, device: torch.device) -> Any:
        return Moment(self, self.now)


class Moment:
    def __init__(self, clock: Clock, at: float) -> None:
        self.clock, self.at = clock, at

    def query(self) -> bool:
        return self.clock.passed

    def elapsed_time(self, later: "Moment") -> float:
        return 1e3 * (later.at - self.at)


def test_what_measuring_takes_of_a_device_is_known_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(device_time, "_recorded", clock.recorded)
    timed = DeviceTime([torch.device("cpu")])
    for passed, known in ((False, 0.0), (False, 0.0), (True, 3.0)):
        clock.passed = passed
        timed.start()
        clock.now += 3.0
        assert timed.stop() == pytest.approx(known)
        clock.now += 10.0
    assert DeviceTime([]).stop() == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("fused", [True, False])
def test_on_cuda_nothing_synchronises(fused: bool) -> None:
    model = classifier().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    watch = optwatch.attach(optimizer, model=model)
    measure_always(watch)
    sent, data = Sent(watch), batches()
    x, y = (each.cuda() for each in next(data))
    for step in range(30):
        if step == 3:  # the optimizer has its state, and the kernels are compiled
            torch.cuda.set_sync_debug_mode("error")
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        watch.log(again=loss)
    torch.cuda.set_sync_debug_mode("default")
    assert not watch._agent.tracks[0].degraded
    watch.detach()
    sent.look(everything=True)
    assert sent.order == list(range(1, 31))
    assert len(sent.samples) > 20
    assert all(np.isfinite(stats).all() for stats, _ in sent.samples.values())
