"""What one decision of a zero-shot search costs, at the step where a run would make it."""

from __future__ import annotations

from typing import Any

import torch
from device import begin_peak, read_peak, times
from steps import Steps, release

from autoprog_diffusion import GrowthConfig, GrowthScheduler


def search_cost(steps: Steps) -> dict[str, Any]:
    """Seconds, peak bytes and candidates of the decision."""
    config = GrowthConfig(num_stages=2, search="zero_shot", stage_embedding=False)
    growth = GrowthScheduler(steps.model, config)
    # No moments: this is about the search alone.
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(steps.model, num_training_steps=8, optimizer=optimizer)
    try:
        for left in reversed(range(config.search_batches)):
            steps.gradients()
            optimizer.step()
            optimizer.zero_grad()
            if left:
                growth.step()
        begin_peak(steps.device)
        (seconds,) = times(steps.device, growth.step, 1)
        peak = read_peak(steps.device)
        (decision,) = growth.decisions
        return {"seconds": seconds, "peak": peak["allocated"], "candidates": len(decision["candidates"])}
    finally:
        release(growth, steps.model)
