"""The gradient noise scale against a literal twin from per-sample gradients, and what a probe must leave alone."""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.noise_estimate import CallProducts, NoiseEstimate, NoiseScale
from autoprog_diffusion.search.noise_scale import WHOLE, NoiseProbe, gradient_noise, measure_calls
from autoprog_diffusion.search.recorded_calls import CallRecorder, RecordedCall

from ..settings import BY_ID
from .families import model_and_calls
from .test_probe import assert_same, snapshot


SAMPLES = 2


def sample_gradients(model: nn.Module, call: RecordedCall, names: list[str]) -> list[Tensor]:
    """Gradient of every sample's own loss, one backward pass each; the loss of a call is their mean."""
    found = []
    for index in range(call.batch):
        one = call.sample(index)
        model.zero_grad()
        one.run(model).backward(one.gradient * call.batch)
        found.append(torch.cat([model.get_parameter(name).grad.flatten() for name in names]))  # type: ignore[union-attr]
    model.zero_grad()
    return found


def literal(batches: list[list[Tensor]]) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) by appendix A.1, from the gradients of samples and two batch sizes, nothing rearranged."""
    small = len(batches[0])
    big = small * len(batches)
    square_small = sum(float(torch.stack(batch).mean(0).square().sum()) for batch in batches) / len(batches)
    square_big = float(torch.stack([gradient for batch in batches for gradient in batch]).mean(0).square().sum())
    signal = (big * square_big - small * square_small) / (big - small)
    noise = (square_small - square_big) / (1 / small - 1 / big)
    return signal, noise


def literal_jackknife(batches: list[list[Tensor]]) -> float:
    values = []
    for left_out in range(len(batches)):
        signal, noise = literal([batch for number, batch in enumerate(batches) if number != left_out])
        values.append(signal / noise)
    deviations = torch.tensor(values, dtype=torch.float64)
    return math.sqrt((len(values) - 1) * float(deviations.var(correction=0)))


@pytest.mark.parametrize("name", ["dit", "unet2d"])
def test_the_probe_agrees_with_per_sample_gradients(name: str) -> None:
    model, layout, calls = model_and_calls(BY_ID[name], batch=SAMPLES, count=4)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=1, min_trainable=1.0, stage_embedding=False))
    growth.prepare(model, num_training_steps=4, optimizer=torch.optim.SGD(growth.parameters()))
    model.train()
    scale = measure_calls(model, lambda: calls, growth)
    model.eval()
    for units in ([unit.name for unit in layout.units if unit.parameters], [layout.blocks[0].name]):
        names = [name for unit in layout.units if unit.name in units for name in unit.parameters]
        used = [name for name in names if name not in unused(model, calls[0])]
        batches = [sample_gradients(model, call, used) for call in calls]
        signal, noise = literal(batches)
        found = scale.of(units)
        assert (found.signal, found.noise) == (pytest.approx(signal, rel=1e-7), pytest.approx(noise, rel=1e-9))
        assert found.error == pytest.approx(literal_jackknife(batches), rel=1e-6)
        assert found.inverse == pytest.approx(signal / noise, rel=1e-7)
    growth.fold(model)


def unused(model: nn.Module, call: RecordedCall) -> set[str]:
    call.replay(model)
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    model.zero_grad()
    return names


def made_up(count: int, batch: int, seed: int, spread: float) -> NoiseScale:
    """Calls with samples' gradients N(G, spread^2) around a known G of norm 1, in 50 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(50, dtype=torch.float64)
    mean[0] = 1.0
    noise = torch.randn(count, batch, 50, generator=generator, dtype=torch.float64)
    gradients = (mean + spread * noise).mean(1)
    total = gradients.sum(0)
    calls = [CallProducts(batch, {WHOLE: float(g @ g)}, {WHOLE: float(g @ total)}) for g in gradients]
    return NoiseScale(tuple(calls))


def test_estimates_are_unbiased_and_the_interval_holds_the_truth() -> None:
    truth = 50 * 0.5**2
    found = [made_up(count=6, batch=4, seed=seed, spread=0.5).total for seed in range(200)]
    signal = sum(each.signal for each in found) / len(found)
    noise = sum(each.noise for each in found) / len(found)
    assert signal == pytest.approx(1.0, abs=0.03)
    assert noise == pytest.approx(truth, rel=0.02)
    inside = [each.low <= truth <= each.high for each in found]
    assert sum(inside) / len(found) >= 0.85


def test_pairs_of_calls_are_what_the_signal_is_the_mean_of() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    total = gradients.sum(0)
    # Calls of unequal sizes are allowed.
    calls = [CallProducts(2 + i, {"a": float(g @ g)}, {"a": float(g @ total)}) for i, g in enumerate(gradients)]
    pairs = [float(a @ b) for a, b in combinations(gradients, 2)]
    assert NoiseScale(tuple(calls)).total.signal == pytest.approx(sum(pairs) / len(pairs))


def test_no_common_gradient_gives_an_unbounded_noise_scale() -> None:
    lost = NoiseEstimate(signal=-0.1, noise=2.0, inverse=-0.05, error=0.1)
    assert (lost.samples, lost.low, lost.high) == (math.inf, pytest.approx(1 / 0.15), math.inf)
    assert lost.to_dict()["samples"] is None


def loss_fn(model: Any, batch: RecordedCall) -> Tensor:
    # A random part shows whether random numbers are put back.
    return (batch.run(model) * batch.gradient).sum() * torch.rand(())


def test_a_probe_leaves_no_trace_and_measures_what_trains() -> None:
    model, _, calls = model_and_calls(BY_ID["dit"], batch=SAMPLES, count=4, dtype=torch.float32)
    model.train()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 4 == 1:
            parameter.grad = torch.randn_like(parameter)
    before = snapshot(model)
    first = gradient_noise(model, loss_fn, calls, calls=4)
    assert_same(before, snapshot(model))
    assert first == gradient_noise(model, loss_fn, calls, calls=4)
    assert first.units == (WHOLE,)
    model.requires_grad_(requires_grad=True)
    assert gradient_noise(model, loss_fn, calls, calls=4).total.noise > first.total.noise


def test_a_loop_is_measured_from_its_own_calls_under_growth() -> None:
    model, layout, calls = model_and_calls(BY_ID["dit"], batch=SAMPLES, count=5, dtype=torch.float32)
    config = GrowthConfig(num_stages=3, direction="window", order="suffix")
    growth = GrowthScheduler(model, config)
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(model, num_training_steps=9, optimizer=optimizer)
    growth.step_in_backward(optimizer)
    probe = NoiseProbe(model, calls=4, growth=growth)
    for call in calls:
        (call.run(model) * call.gradient).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    weights = [parameter.detach().clone() for parameter in growth.parameters()]
    table = growth.stage_embedding
    scale = probe.measure()
    assert all(torch.equal(a, b) for a, b in zip(weights, growth.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in table.parameters())  # type: ignore
    trained = {layout.blocks[index].name for index in growth.plan.stages[growth.stage].blocks}
    assert trained <= set(scale.units)
    frozen = {block.name for block in layout.blocks} - trained
    assert not frozen & set(scale.units)
    alone = measure_calls(model, lambda: calls[1:], growth)
    assert alone.total.signal == pytest.approx(scale.total.signal, rel=1e-3)
    with pytest.raises(SearchError, match="asked of 0 training calls"):
        probe.measure()


def test_a_call_under_autocast_is_replayed_under_it() -> None:
    model, _, calls = model_and_calls(BY_ID["unet2d"], batch=SAMPLES, count=3, dtype=torch.float32)
    recorder = CallRecorder(model, 3)
    recorder.start()
    kept = []
    for call in calls:
        with torch.autocast("cpu", torch.bfloat16):
            output = call.run(model)
        (output * call.gradient).sum().backward()
        kept.append(output.detach())
    assert [call.autocast for call in recorder.calls] == [torch.bfloat16] * 3
    assert all(torch.equal(call.run(model), output) for call, output in zip(recorder.calls, kept, strict=True))
    saved = recorder.saved()
    recorder.restore(saved, torch.device("cpu"))
    assert [call.autocast for call in recorder.calls] == [torch.bfloat16] * 3
    recorder.stop()


def test_bad_input_is_refused() -> None:
    model, _, calls = model_and_calls(BY_ID["unet2d"], batch=SAMPLES, count=3, dtype=torch.float32)
    with pytest.raises(SearchError, match="calls=2 is not allowed"):
        NoiseProbe(model, calls=2)
    with pytest.raises(SearchError, match="half-precision gradient scaler"):
        gradient_noise(model, loss_fn, calls, accelerator=SimpleNamespace(scaler=object()))
    with pytest.raises(SearchError, match="asked of 1 training calls, at least 3"):
        gradient_noise(model, loss_fn, calls[:1])
    half = RecordedCall(calls[0].args, calls[0].kwargs, calls[0].gradient.half())
    with pytest.raises(SearchError, match="float16"):
        measure_calls(model, lambda: [half] * 3)
    infinite = RecordedCall(calls[0].args, calls[0].kwargs, calls[0].gradient * math.inf)
    with pytest.raises(SearchError, match="training call 0 is not finite"):
        measure_calls(model, lambda: [infinite] * 3)
    with pytest.raises(SearchError, match="choose from"):
        measure_calls(model, lambda: calls).of(["blocks.9"])
