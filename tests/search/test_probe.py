"""A probe leaves no trace, also when it raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoprog_diffusion.search.cost import count_costs
from autoprog_diffusion.search.ntk import parameter_grams
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.recorded_calls import CallRecorder, RecordedCall, calls_from_loss
from autoprog_diffusion.search.zico import parameter_scores

from ..settings import BY_ID
from .families import model_and_calls


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "param_hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "rng": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        assert str(before[key]) == str(after[key]), key
    assert all(torch.equal(a, b) for a, b in zip(before["weights"], after["weights"]))
    assert torch.equal(before["rng"], after["rng"])


@pytest.mark.parametrize("fails", [False, True], ids=["completes", "raises"])
def test_everything_is_as_before(fails: bool) -> None:
    model, layout, calls = model_and_calls(BY_ID["dit"], dtype=torch.float32)
    model.train()
    model.transformer_blocks[1].eval()  # type: ignore[index]
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 4 == 1:
            parameter.grad = torch.randn_like(parameter)
    before = snapshot(model)

    def probe() -> None:
        with leaving_no_trace(model):
            assert not any(module.training for module in model.modules())
            assert all(parameter.requires_grad for parameter in model.parameters())
            torch.randn(3)
            parameter_scores(model, calls)
            parameter_grams(model, calls[0])
            count_costs(model, layout, calls[0], [2])
            if fails:
                broken = RecordedCall(
                    (), {**calls[0].kwargs, "hidden_states": torch.randn(4, 9, 8, 8)}, calls[0].gradient
                )
                parameter_grams(model, broken)

    if fails:
        with pytest.raises(RuntimeError):
            probe()
    else:
        probe()
    assert_same(before, snapshot(model))


def test_the_recorder_keeps_what_the_loss_sent_back() -> None:
    model, _, calls = model_and_calls(BY_ID["unet2d"], dtype=torch.float32)
    recorder = CallRecorder(model, 2)
    recorder.start()
    for call in [*calls, calls[0]]:
        output = model(**call.kwargs, return_dict=True)[0]
        (3 * output * call.gradient).sum().backward()
        with torch.no_grad():
            model(**call.kwargs)  # a validation call in between is not a training call
    kept = recorder.calls
    assert [torch.equal(k.gradient, 3 * c.gradient) for k, c in zip(kept, [calls[1], calls[0]])] == [True, True]
    assert torch.equal(kept[0].run(model), calls[1].run(model))
    recorder.stop()
    assert not model._forward_hooks
    assert not recorder.calls


def test_a_users_loss_gives_the_same_calls() -> None:
    model, _, calls = model_and_calls(BY_ID["unet2d"], dtype=torch.float32)

    def loss_fn(network: torch.nn.Module, batch: RecordedCall) -> torch.Tensor:
        return (batch.run(network) * batch.gradient).sum()

    found = calls_from_loss(model, loss_fn, iter(calls), 2)
    assert all(torch.equal(a.gradient, b.gradient) for a, b in zip(found, calls))
    assert all(parameter.grad is None for parameter in model.parameters())  # they would count in the replay


def test_calls_at_another_resolution_keep_the_noise() -> None:
    _, _, calls = model_and_calls(BY_ID["unet2d"], dtype=torch.float32)
    small = calls[0].resized(0.5)
    assert small.kwargs["sample"].shape == (4, 3, 4, 4)
    assert small.gradient.shape == (4, 3, 4, 4)
    assert torch.isin(small.kwargs["sample"], calls[0].kwargs["sample"]).all()
    assert small.kwargs["timestep"] is calls[0].kwargs["timestep"]
