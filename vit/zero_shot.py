"""Training-free choice of a sub-network: the core's scores, for candidates that differ in depth and resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout, set_trainable
from autoprog_diffusion.search.calls import Call, calls_from_loss
from autoprog_diffusion.search.candidates import Candidate
from autoprog_diffusion.search.ntk import condition_number, parameter_grams, unit_grams
from autoprog_diffusion.search.objective import Score
from autoprog_diffusion.search.probe import untouched
from autoprog_diffusion.search.zero_shot import PROBE_SAMPLES
from autoprog_diffusion.search.zico import mean_gradients, parameter_scores, unit_gain, unit_zico

from .one_shot import LossFn


CALLS = 4  # batches a score looks at, at most


def score_running(
    model: nn.Module,
    layout: Layout,
    running: tuple[int, ...],
    resolution: int,
    full: int,
    loss_fn: LossFn,
    batches: Sequence[tuple[Tensor, Tensor]],
    resize: Callable[[Tensor, int], Tensor],
    cost: float,
) -> Score:
    """NTK condition number, ZiCo and expected gain of the sub-network that runs now.

    Unlike in fine-tuning, candidates are different networks, so each takes a probe of its own. The gain at a smaller
    resolution is what its gradient does for the loss at full resolution, on other batches.

    Args:
        model: The bare model.
        layout: Its units.
        running: Indices of the blocks that run.
        resolution: Image side of the candidate in pixels.
        full: The full one.
        loss_fn: `loss_fn(model, images, targets) -> loss`.
        batches: At least two, at full resolution.
        resize: (images, pixels) -> images.
        cost: Of the candidate's step.
    """
    units = [layout.inputs, *(layout.blocks[index] for index in running), layout.outputs]
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    trains &= {name for unit in units for name in unit.parameters}

    def calls_at(side: int) -> list[Call]:
        device = next(model.parameters()).device
        sized = [(resize(images.to(device), side), targets.to(device)) for images, targets in batches[:CALLS]]
        return calls_from_loss(model, lambda m, batch: loss_fn(m, *batch), sized, len(sized))

    with untouched(model, names=trains):
        reference = None if resolution == full else mean_gradients(model, calls_at(full)[::2])
        calls = calls_at(resolution)
        for parameter in model.parameters():
            parameter.grad = None
        scores = parameter_scores(model, calls, reference)
        # Only weights count in the score; position embeddings would take a pass per sample.
        set_trainable(model, {name for name in trains if "weight" in name})
        grams = unit_grams(layout, parameter_grams(model, calls[-1].first(PROBE_SAMPLES)))
    zico, gain = unit_zico(model, layout, scores), unit_gain(layout, scores)
    parts = [grams[unit.name] for unit in units if grams[unit.name].dim() == 2]
    kappa = condition_number(torch.stack(parts).sum(0)) if parts else float("nan")
    name = f"{len(running)} blocks at {resolution}"
    totals = [sum(table[unit.name] for unit in units) for table in (zico, gain)]
    return Score(Candidate(name, running, resolution), cost, kappa, *totals)
