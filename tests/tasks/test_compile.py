"""`--compile`: a graph for a kind of block, names and resumes as ever, and what does not work is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import nn

from autoprog_diffusion.growth import ConfigError, GrowthConfig, GrowthScheduler
from autoprog_diffusion.training import compiled
from autoprog_diffusion.training.compiled import CompiledBlocks, check_compile

from .tiny import parse
from .training import NewTrainer, same, weights


pytestmark = [
    # torch looks at gradients of what is not a leaf while it traces.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
FLAGS = ("--max_train_steps", 4, "--train_batch_size", 4, "--num_stages", 2, "--lr_scheduler", "constant")


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces blocks without a C++ compiler, which takes a minute."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(trainer: Any) -> Any:
    trainer.compiled = CompiledBlocks(trainer.bare, trainer.growth.layout)
    return trainer


def dit(depth: int) -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(2, 4, 4, num_layers=depth, sample_size=8, num_embeds_ada_norm=10).train()


def train(depth: int, *, compiles: bool, **settings: Any) -> tuple[DiTTransformer2DModel, dict[int, int]]:
    """Two steps in each of four stages; returns the model, and the graphs of every stage."""
    torch._dynamo.reset()
    model = dit(depth)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=4, **settings))
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=8, optimizer=optimizer)
    blocks = CompiledBlocks(model, growth.layout) if compiles else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        image = torch.randn(2, 4, 8, 8, generator=generator)
        inputs = (image, torch.tensor([3, 700]), torch.tensor([1, 2]))
        if blocks is None:
            model(*inputs).sample.square().mean().backward()
        else:
            with blocks.training(growth.stage):
                model(*inputs).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    if blocks is not None:
        blocks.stop()
    growth.fold(model)
    return model, {} if blocks is None else blocks.by_stage


@pytest.mark.parametrize(
    "settings", [{}, {"direction": "unfreeze", "order": "interleaved"}], ids=["freeze", "between"]
)
def test_graphs_are_of_kinds_of_blocks_not_of_stages(settings: dict[str, Any]) -> None:
    model, found = train(8, compiles=True, **settings)
    assert sum(found.values()) <= 2 * 3
    assert train(12, compiles=True, **settings)[1] == found
    plain, _ = train(8, compiles=False, **settings)
    for (name, value), (other, expected) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_evaluations_are_not_compiled(new_trainer: NewTrainer) -> None:
    flags = (*FLAGS, "--checkpointing_steps", 3)
    plain = new_trainer(*flags)
    plain.train()
    whole = compile_blocks(new_trainer(*flags))
    whole.train()
    graphs = compiled.graphs()
    batch = next(whole.batches())
    with torch.no_grad():
        whole.loss(whole.bare, batch)
    assert compiled.graphs() == graphs
    resumed = compile_blocks(new_trainer(*flags))
    assert resumed.resume("checkpoint-3")
    resumed.train()
    assert same(weights(whole), weights(resumed))
    assert list(weights(whole)) == list(weights(plain))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(whole)[name], value, rtol=1e-3, atol=1e-4)
    assert "graphs (" in str(whole.compiled)
    whole.compiled.stop()
    assert not [module for module in whole.bare.modules() if "forward" in vars(module)]


def test_what_does_not_work_is_refused(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        "--search zero_shot",
        "--frozen_dtype int8",
        "--checkpointing auto --memory_gb 1",
        "--step_in_backward",
    ):
        with pytest.raises(ConfigError, match="--compile does not go with " + words.split()[0]):
            check_compile(parse("--compile", *words.split()), accelerator)
    check_compile(parse("--compile"), accelerator)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ConfigError, match="which compiles the whole model"):
        check_compile(parse("--compile"), accelerator)
    monkeypatch.delenv("ACCELERATE_DYNAMO_BACKEND")
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler on the CPU, and there is no no-such-compiler"):
        check_compile(parse("--compile"), accelerator)


def test_a_model_without_blocks_that_repeat_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, min_trainable=0.5, stage_embedding=False), blocks=["*"])
    with pytest.raises(ConfigError, match="Sequential has none"):
        CompiledBlocks(model, growth.layout)


@pytest.mark.slow
def test_batches_of_several_sizes_take_graphs_for_any_size() -> None:
    counts = {}
    for varied in (False, True):
        torch._dynamo.reset()
        model = dit(2)
        growth = GrowthScheduler(model, GrowthConfig(num_stages=1))
        growth.prepare(model, num_training_steps=8, optimizer=torch.optim.SGD(growth.parameters(), lr=0.1))
        blocks = CompiledBlocks(model, growth.layout, varied=varied)
        for side in (8, 12, 16, 20, 24):  # a DiT takes squares
            with blocks.training(0):
                inputs = (torch.randn(2, 4, side, side), torch.tensor([3, 700]), torch.tensor([1, 2]))
                model(*inputs).sample.square().mean().backward()
        counts[varied] = blocks.by_stage[0]
        blocks.stop()
    # Two kinds of inputs, each at its first size and then at any.
    assert counts[True] <= 4
    assert counts[False] > 4
