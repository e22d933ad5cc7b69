"""Optimizers of other packages: what is reported of them, and what can be done to them.

Moments are followed here from the gradients alone, in float64; what 8-bit packages hold is unpacked by
their own functions. `pip install --group optimizers` brings the packages.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optwatch
from optwatch.wire.messages import STATS
from optwatch_agent.attach import innermost
from optwatch_agent.roles import roles_of
from tests.unit.agent.models import batches, classifier
from tests.unit.agent.observed import Hand, Step, copies, grads_of_loss, measure_always, observe, samples_of

pytestmark = [
    pytest.mark.slow,
    # Theirs, not ours.
    pytest.mark.filterwarnings("ignore"),
]

Follow = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(moment before, gradient, parameter before | first moment, step) → moment."""


@dataclass
class Case:
    """One optimizer. `first` and `second` follow its moments; None where it has none.

    `eps` stands beside sqrt(v̂), v̂ = v / (1 - beta2^t). `held` reads moments that cannot be followed from
    its state: (optimizer, parameter) → (first, second). `factored`: of a matrix, the means of rows and
    columns of the second moment are all that is kept.
    """

    package: str
    make: Callable[[Any, Any], Any]
    first: Follow | None = None
    second: Follow | None = None
    eps: float = 1e-8
    beta2: float | None = None
    held: Callable[[Any, Tensor], tuple[Tensor | None, Tensor | None]] | None = None
    dtype: torch.dtype = torch.float64
    width: int = 24
    factored: bool = False


def ema(beta: float) -> Follow:
    return lambda m, g, p, t: beta * m + (1 - beta) * g


def ema_of_squares(beta: float) -> Follow:
    return lambda v, g, m, t: beta * v + (1 - beta) * g * g


def belief(beta: float, eps: float) -> Follow:
    return lambda v, g, m, t: beta * v + (1 - beta) * (g - m) ** 2 + eps


def adafactor(v: Tensor, g: Tensor, m: Tensor, t: int) -> Tensor:
    """The whole second moment, of which Adafactor keeps the means."""
    beta = 1 - t**-0.8
    return beta * v + (1 - beta) * (g * g + 1e-30)


def of_factors(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.outer(rows, columns) / rows.mean()


def lars(m: Tensor, g: Tensor, p: Tensor, t: int) -> Tensor:
    if g.ndim > 1:
        g = g * (1e-3 * p.norm() / g.norm())
    return 0.9 * m + g


def unpacked_by_bitsandbytes(optimizer: Any, param: Tensor) -> tuple[Tensor | None, Tensor | None]:
    from bitsandbytes.functional import dequantize_blockwise

    state = optimizer.state[param]
    return tuple(  # type: ignore[return-value]
        dequantize_blockwise(
            state[f"state{i}"], absmax=state[f"absmax{i}"], code=state[f"qmap{i}"], blocksize=256
        )
        if state[f"state{i}"].dtype == torch.uint8
        else state[f"state{i}"]
        for i in (1, 2)
    )


def unpacked_by_torchao(optimizer: Any, param: Tensor) -> tuple[Tensor | None, Tensor | None]:
    state = optimizer.state[param]
    unpacked = [
        state[key].dequantize() if hasattr(state[key], "codes") else state[key]
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return unpacked[0], unpacked[1]


def kept_by_adafactor(state: Any) -> Tensor:
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"]  # type: ignore[no-any-return]
    return of_factors(state["exp_avg_sq_row"], state["exp_avg_sq_col"])


def ready(optimizer: Any) -> Any:
    """Schedule-free optimizers want to be told."""
    optimizer.train()
    return optimizer


ADAM: dict[str, Any] = {"first": ema(0.9), "second": ema_of_squares(0.999), "beta2": 0.999}

CASES = {
    "AdaBelief-to": Case(
        "torch_optimizer",
        lambda m, p: m.AdaBelief(p, lr=1e-3, weight_decay=0.0, eps=1e-8),
        ema(0.9),
        belief(0.999, 1e-8),
        beta2=0.999,
    ),
    "AdaBound-to": Case("torch_optimizer", lambda m, p: m.AdaBound(p, lr=1e-3), **ADAM),
    "Adafactor-to": Case(
        "torch_optimizer", lambda m, p: m.Adafactor(p, lr=1e-3), None, adafactor, eps=0.0, factored=True
    ),
    "LARS-to": Case(
        "torch_optimizer", lambda m, p: m.LARS(p, lr=1e-2, momentum=0.9), lambda m, g, p, t: 0.9 * m + g
    ),
    "Lamb-to": Case("torch_optimizer", lambda m, p: m.Lamb(p, lr=1e-3), eps=1e-6, **ADAM),
    "RAdam-to": Case("torch_optimizer", lambda m, p: m.RAdam(p, lr=1e-3), **ADAM),
    "Lookahead-to": Case(
        "torch_optimizer", lambda m, p: m.Lookahead(torch.optim.AdamW(p, lr=1e-3), k=3), **ADAM
    ),
    "AdaBelief-po": Case(
        "pytorch_optimizer",
        lambda m, p: m.AdaBelief(p, lr=1e-3, eps=1e-12),
        ema(0.9),
        belief(0.999, 1e-12),
        eps=1e-12,
        beta2=0.999,
    ),
    "AdaBound-po": Case("pytorch_optimizer", lambda m, p: m.AdaBound(p, lr=1e-3), **ADAM),
    "AdaFactor-po": Case(
        "pytorch_optimizer",
        lambda m, p: m.AdaFactor(p, lr=1e-3, momentum_dtype=torch.float64),
        eps=0.0,
        held=lambda o, p: (o.state[p]["exp_avg"], kept_by_adafactor(o.state[p])),
    ),
    "LARS-po": Case("pytorch_optimizer", lambda m, p: m.LARS(p, lr=1e-1), lars),
    "Lamb-po": Case("pytorch_optimizer", lambda m, p: m.Lamb(p, lr=1e-3), eps=1e-6, **ADAM),
    "Lion-po": Case("pytorch_optimizer", lambda m, p: m.Lion(p, lr=1e-4), ema(0.99)),
    "RAdam-po": Case("pytorch_optimizer", lambda m, p: m.RAdam(p, lr=1e-3), **ADAM),
    "Lookahead-po": Case(
        "pytorch_optimizer", lambda m, p: m.Lookahead(torch.optim.AdamW(p, lr=1e-3), k=3), **ADAM
    ),
    "ScheduleFreeAdamW-po": Case(
        "pytorch_optimizer",
        lambda m, p: ready(m.ScheduleFreeAdamW(p, lr=1e-3)),
        None,
        ema_of_squares(0.999),
        beta2=0.999,
    ),
    "ScheduleFreeSGD-po": Case("pytorch_optimizer", lambda m, p: ready(m.ScheduleFreeSGD(p, lr=1e-2))),
    "Lion": Case("lion_pytorch", lambda m, p: m.Lion(p, lr=1e-4), ema(0.99)),
    "AdamWScheduleFree": Case(
        "schedulefree",
        lambda m, p: ready(m.AdamWScheduleFree(p, lr=1e-3)),
        None,
        ema_of_squares(0.999),
        beta2=0.999,
    ),
    "RAdamScheduleFree": Case(
        "schedulefree",
        lambda m, p: ready(m.RAdamScheduleFree(p, lr=1e-3)),
        None,
        ema_of_squares(0.999),
        beta2=0.999,
    ),
    "SGDScheduleFree": Case("schedulefree", lambda m, p: ready(m.SGDScheduleFree(p, lr=1e-2))),
    "AdamW8bit-bnb": Case(
        "bitsandbytes",
        lambda m, p: m.optim.AdamW8bit(p, lr=1e-3),
        beta2=0.999,
        held=unpacked_by_bitsandbytes,
        dtype=torch.float32,
        width=128,
    ),
    "AdamW8bit-ao": Case(
        "torchao.optim",
        lambda m, p: m.AdamW8bit(p, lr=1e-3),
        beta2=0.999,
        held=unpacked_by_torchao,
        dtype=torch.float32,
        width=128,
    ),
    "AdaBelief-timm": Case(
        "timm.optim",
        lambda m, p: m.AdaBelief(p, lr=1e-3, eps=1e-12, rectify=False),
        ema(0.9),
        belief(0.999, 1e-12),
        eps=1e-12,
        beta2=0.999,
    ),
    "Lamb-timm": Case("timm.optim", lambda m, p: m.Lamb(p, lr=1e-3, max_grad_norm=None), eps=1e-6, **ADAM),
    "Lars-timm": Case(
        "timm.optim",
        lambda m, p: m.Lars(p, lr=1e-1, momentum=0.9),
        held=lambda o, p: (o.state[p]["momentum_buffer"], None),
    ),
    "Lion-timm": Case("timm.optim", lambda m, p: m.Lion(p, lr=1e-4), ema(0.99)),
    "Adafactor-timm": Case(
        "timm.optim",
        lambda m, p: m.Adafactor(p, lr=1e-3),
        eps=0.0,
        held=lambda o, p: (None, kept_by_adafactor(o.state[p])),
    ),
    "Lookahead-timm": Case(
        "timm.optim", lambda m, p: m.Lookahead(torch.optim.AdamW(p, lr=1e-3), k=3), **ADAM
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def build(case: Case) -> tuple[nn.Module, Callable[[Any], Any]]:
    why = f"{case.package} is not installed: pip install --group optimizers"
    if case.package.startswith("timm"):
        why = "timm is not installed: pip install timm, with the torchvision of this torch"
    module = pytest.importorskip(case.package, reason=why, exc_type=ImportError)
    model = classifier(width=case.width, dtype=case.dtype).eval()
    return model, lambda params: case.make(module, params)


def expected(case: Case, seen: list[Step], held: list[list[Any]], t: int, i: int) -> dict[str, float]:
    """The statistics of tensor i at step t, from all gradients until then."""
    step = seen[t - 1]
    grad, first, second = step.grads[i], torch.zeros(()), torch.zeros(())
    first = second = torch.zeros_like(grad)
    for k, earlier in enumerate(seen[:t], start=1):
        if case.first is not None:
            first = case.first(first, earlier.grads[i], earlier.before[i], k)
        if case.second is not None:
            second = case.second(second, earlier.grads[i], first, k)
    has_first, has_second = case.first is not None, case.second is not None
    if case.held is not None:
        one, two = held[t - 1][i]
        has_first, has_second = one is not None, two is not None
        first, second = one if has_first else first, two if has_second else second
    values = dict.fromkeys(STATS, math.nan)
    values |= {
        "grad_rms": rms(grad),
        "grad_max": float(grad.abs().max()),
        "param_rms": rms(step.after[i]),
        "param_max": float(step.after[i].abs().max()),
        "update_rms": rms(step.after[i] - step.before[i]),
    }
    if has_first:
        values["exp_avg_rms"] = rms(first)
        values["cos_grad_exp_avg"] = float((grad * first).sum() / (grad.norm() * first.norm()))
    if case.factored and second.ndim > 1:
        second = of_factors(second.mean(dim=1), second.mean(dim=0))
    if has_second:
        root = (second / (1 - case.beta2**t if case.beta2 else 1)).sqrt()
        values |= {
            "exp_avg_sq_mean": float(second.mean()),
            "exp_avg_sq_min": float(second.min()),
            "exp_avg_sq_max": float(second.max()),
            "rms_t": rms(grad / root.clamp(min=max(case.eps, 1e-37))),
            "eps_share": float((root < 10 * case.eps).double().mean()),
        }
    return values


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


STEPS = 12


def test_what_is_reported(case: Case) -> None:
    model, make = build(case)
    params = list(model.parameters())
    held: list[list[Any]] = []
    keeps_grad = True

    def look(optimizer: Any) -> None:
        nonlocal keeps_grad
        keeps_grad = roles_of(innermost(optimizer)).keeps_grad
        if case.held is not None:
            both = [case.held(optimizer, p) for p in params]
            held.append([[None if x is None else x.double().clone() for x in pair] for pair in both])

    seen = observe(make, model, batches(dtype=case.dtype), STEPS, look)
    sampled = [t for t, step in enumerate(seen, start=1) if step.sample is not None]
    assert len(sampled) >= STEPS - 3
    covered = np.zeros(len(params), dtype=bool)
    exact = case.dtype == torch.float64
    for t in sampled:
        stats = seen[t - 1].sample.stats  # type: ignore[union-attr]
        for i in range(len(params)):
            got = dict(zip(STATS, stats[i].tolist(), strict=True))
            wanted = expected(case, seen, held, t, i)
            if not keeps_grad and math.isnan(got["update_rms"]):  # not its turn: its gradient was not kept
                wanted |= dict.fromkeys(("rms_t", "cos_grad_exp_avg", "update_rms"), math.nan)
            else:
                covered[i] = True
            if math.isnan(got["update_rms"]):
                del wanted["update_rms"]
            for name, value in wanted.items():
                tolerance = 1e-6 if exact else 1e-3 if name == "update_rms" else 1e-5
                if name == "update_rms" and t % 3 in (0, 1) and case in LOOKAHEAD:
                    continue  # the slow weights are synchronised after the step of the inner optimizer
                if name.startswith("param") and case in LOOKAHEAD:
                    continue
                assert got[name] == pytest.approx(value, rel=tolerance, abs=1e-12, nan_ok=True), (t, i, name)
    assert covered.all(), "every tensor had its turn"


LOOKAHEAD = [each for name, each in CASES.items() if name.startswith("Lookahead")]


def run(case: Case, steps: int, act: Callable[[int, Any, Hand | None], None], attached: bool) -> list[Tensor]:
    """Train for some steps; the parameters. `act` is called before each step, with gradients in place."""
    model, make = build(case)
    optimizer, data = make(model.parameters()), batches(dtype=case.dtype)
    watch = optwatch.attach(optimizer) if attached else None
    hand = Hand(watch._agent) if watch is not None else None
    for t in range(1, steps + 1):
        grads_of_loss(model, optimizer, data)
        act(t, optimizer, hand)
        optimizer.step()
    if watch is not None and hand is not None:
        assert hand.outcomes()[-1][1] == "applied", hand.outcomes()
        watch.detach()
    return [p.detach() for p in model.parameters()]


def test_scale_lr_is_a_smaller_lr(case: Case) -> None:
    """Bitwise the same as halving the lr by hand."""

    def ours(t: int, optimizer: Any, hand: Hand | None) -> None:
        if t == 5 and hand is not None:
            hand.command("scale_lr", factor=0.5)  # from step 6 on, when `step` is wrapped

    def theirs(t: int, optimizer: Any, hand: Hand | None) -> None:
        if t == 6:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5

    for one, other in zip(run(case, 9, ours, True), run(case, 9, theirs, False), strict=True):
        assert torch.equal(one, other)


def test_clip_is_clip_grad_norm(case: Case) -> None:
    def ours(t: int, optimizer: Any, hand: Hand | None) -> None:
        if t == 5 and hand is not None:
            hand.command("clip", max_norm=0.05)

    def theirs(t: int, optimizer: Any, hand: Hand | None) -> None:
        if t >= 5:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, 0.05)

    for one, other in zip(run(case, 9, ours, True), run(case, 9, theirs, False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_restart_is_a_new_optimizer(case: Case) -> None:
    """The steps after a restart, against those of a new optimizer on the same parameters: bitwise in
    float64. A Lookahead keeps its slow weights: the two agree until they are synchronised."""
    model, make = build(case)
    optimizer, data = make(model.parameters()), batches(dtype=case.dtype)
    watch = optwatch.attach(optimizer)
    for _ in range(7):  # none of the Lookaheads synchronises at the eighth
        grads_of_loss(model, optimizer, data)
        optimizer.step()
    twin = copy.deepcopy(model)
    new = make(twin.parameters())
    hand = Hand(watch._agent)
    hand.command("restart")
    steps = 1 if case in LOOKAHEAD else 4
    for t in range(steps):
        grads_of_loss(model, optimizer, batches(3 + t, dtype=case.dtype))
        grads_of_loss(twin, new, batches(3 + t, dtype=case.dtype))
        optimizer.step()
        if case in LOOKAHEAD:
            new = getattr(new, "optimizer", None) or new._base_optimizer
        new.step()
    assert hand.outcomes()[-1][1] == "applied", hand.outcomes()
    watch.detach()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        if case.dtype == torch.float64 and case not in LOOKAHEAD:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_an_optimizer_that_nobody_knows_is_still_seen() -> None:
    module = pytest.importorskip("pytorch_optimizer", reason="pip install --group optimizers")
    model = classifier(dtype=torch.float64).eval()
    optimizer = module.AdEMAMix(model.parameters(), lr=1e-3)
    watch = optwatch.attach(optimizer)
    hand = Hand(watch._agent)
    hand.command("restart")
    hints = watch._agent.hello().optimizers[0].hints
    assert hand.outcomes() == [
        ("restart", "refused", "the state of AdEMAMix is not known well enough to clear")
    ]
    watch.detach()
    assert any("AdEMAMix is not known" in hint for hint in hints)


@pytest.mark.parametrize(("package", "least"), [("pytorch_optimizer", 90), ("torch_optimizer", 25)])
def test_every_optimizer_of_a_package_is_measured_and_left_alone(package: str, least: int) -> None:
    """Those that take plain parameters, known or not: the same bits, and each gradient as the step got it."""
    module = pytest.importorskip(package, exc_type=ImportError)
    kinds = {kind for kind in vars(module).values() if isinstance(kind, type)}
    tried = wrong = 0
    for kind in sorted((k for k in kinds if issubclass(k, torch.optim.Optimizer)), key=lambda k: k.__name__):
        for options in ({"lr": 1e-3}, {}, {"lr": 1e-3, "num_iterations": 100}):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plain, _ = trained(kind, options, attached=False)
                again, _ = trained(kind, options, attached=False)
                break
        else:
            continue
        if not same(plain, again):
            continue
        tried += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, errors = trained(kind, options, attached=True)
        if errors or not same(ours, plain):
            wrong += 1
            print(kind.__name__, errors or "other bits")
    assert wrong == 0
    assert tried >= least


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True))


def trained(kind: Any, options: dict[str, Any], attached: bool) -> tuple[list[Tensor], list[str]]:
    """The parameters after a few steps, and what was wrong with what was measured of them."""
    np.random.seed(0)  # which Kron draws from
    model = classifier().eval()
    params = list(model.parameters())
    optimizer, data = kind(model.parameters(), **options), batches()
    watch = optwatch.attach(optimizer, model=model, snapshots=1 << 20) if attached else None
    errors: list[str] = []
    if watch is not None:
        measure_always(watch)
        samples = samples_of(watch)
    for step in range(1, 9):
        grads_of_loss(model, optimizer, data)
        grads = copies(p.grad for p in params if p.grad is not None)
        optimizer.step()
        if watch is not None and step in samples:
            found = samples[step].stats[:, STATS.index("grad_rms")]
            wanted = [float(grad.square().mean().sqrt()) for grad in grads]
            if not np.allclose(found, wanted, rtol=1e-5, equal_nan=True):
                errors.append(f"step {step}: {found} for {wanted}")
    if watch is not None:
        track = watch._agent.tracks[0]
        errors += [text for text in (track.degraded, track.actuators.snapshots.failed) if text]
        if len(samples) < 5:
            errors.append(f"{len(samples)} samples")
        watch.detach()
    return [p.detach().clone() for p in params], errors
