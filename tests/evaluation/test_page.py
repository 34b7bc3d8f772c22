"""The code of docs/held_out.md runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel

from ..settings import BY_ID


PAGE = Path(__file__).parents[2] / "docs" / "held_out.md"


def code_blocks() -> list[str]:
    parts = PAGE.read_text(encoding="utf-8").split("```python\n")
    return [part.split("```")[0] for part in parts[1:]]


def test_the_code_runs_in_a_script_that_knows_nothing_of_it(accelerator: Any, capsys: Any) -> None:
    family = BY_ID["sd"]
    unet = family.build()
    assert isinstance(unet, UNet2DConditionModel)
    inputs = [family.inputs(seed, 2) for seed in range(3)]
    batches = [(batch["sample"], batch["encoder_hidden_states"]) for batch in inputs]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    ema = EMAModel(unet.parameters())

    def train(unet: Any, batch: Any) -> None:
        unet(batch[0], torch.tensor([1, 500]), batch[1]).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    first, second = code_blocks()
    names: dict[str, Any] = {
        "unet": unet,
        "scheduler": DDPMScheduler(),
        "accelerator": accelerator,
        "ema": ema,
        "train": train,
        "batches": batches * 4,
        "held_out_batches": batches[:2],
    }
    exec(first, names)
    loss = names["result"].loss
    assert f"{loss:.4f}" in capsys.readouterr().out
    names["earlier"] = names["result"]
    exec(second, names)
    assert names["change"].value == 0
    assert not names["change"].is_lower
