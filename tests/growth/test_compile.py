"""torch.compile by block: a stage compiles anew once per kind of block, however many blocks there are."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from autoprog_diffusion import GrowthConfig, GrowthScheduler


def compilations(depth: int, order: str) -> list[int]:
    """Graphs compiled at each of six steps over three stages, by a DiT whose blocks are compiled one by one."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = diffusers.DiTTransformer2DModel(2, 4, 4, num_layers=depth, sample_size=8, num_embeds_ada_norm=10).train()
    for block in model.transformer_blocks:
        block.compile(backend=backend)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, order=order, direction="unfreeze"))
    growth.prepare(model, num_training_steps=6)
    counts = []
    for _ in range(6):
        before = len(graphs)
        model(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 2])).sample.square().mean().backward()
        counts.append(len(graphs) - before)
        growth.step()
    return counts


# torch looks at gradients of what is not a leaf while it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("order", ["suffix", "interleaved"])
def test_a_stage_compiles_once_per_kind_of_block(order: str) -> None:
    counts = compilations(8, order)
    assert all(counts[::2])
    assert not any(counts[1::2])  # nothing is compiled twice inside a stage
    assert compilations(12, order) == counts
    torch._dynamo.reset()
