"""Power-function averages in the checkpoints of Accelerate, in held-out losses, and on the page that shows them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler, StateError
from autoprog_diffusion.evaluation.held_out import HeldOut
from autoprog_diffusion.growth.power_average import PowerAverage

from ..settings import BY_ID
from .looping import SMALL
from .preparing import DIT


PAGE = Path(__file__).parents[2] / "docs" / "integrate.md"
STEPS = 8


class Run:
    """A loop of Accelerate with growth and an average."""

    def __init__(self, accelerator: Accelerator, direction: str, *, averages: bool = True, **settings: Any) -> None:
        self.accelerator = accelerator
        model = DIT.build().train()
        config = GrowthConfig(num_stages=4, direction=direction)  # type: ignore[arg-type]
        self.growth = GrowthScheduler(model, config, accelerator)
        optimizer = torch.optim.AdamW(self.growth.parameters(), lr=1e-2)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.growth.prepare(self.model, num_training_steps=STEPS)
        self.average: Any = None
        if averages:
            self.average = PowerAverage(self.model, growth=self.growth, accelerator=accelerator, **settings)

    def train(self, start: int, end: int) -> None:
        for step in range(start, end):
            self.accelerator.backward(DIT.loss(self.model, step))
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average is not None:
                self.average.step()
            self.growth.step()

    def forget(self) -> None:
        """Let the accelerator serve another run."""
        self.accelerator._custom_objects.clear()
        self.accelerator._save_model_state_pre_hook.clear()
        self.accelerator._load_model_state_pre_hook.clear()
        self.accelerator.free_memory()


@pytest.mark.parametrize(
    ("direction", "begin"),
    [("freeze", 4), pytest.param("freeze", 3, marks=pytest.mark.slow), ("window", 3)],
)
def test_a_resumed_run_has_the_averages_of_the_whole_one_bit_for_bit(
    accelerator: Any, tmp_path: Path, direction: str, begin: int
) -> None:
    settings = {"freeze_at_average": True, "widths": [0.15, 0.25]}
    whole = Run(accelerator, direction, **settings)
    whole.train(0, begin)
    accelerator.save_state(str(tmp_path))
    whole.train(begin, STEPS)
    whole.forget()
    resumed = Run(accelerator, direction, **settings)
    accelerator.load_state(str(tmp_path))
    resumed.train(begin, STEPS)
    resumed.forget()
    assert resumed.average.steps == STEPS
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    for width in (0.15, 0.25):
        whole.average.use(width)
        resumed.average.use(width)
        assert "stage_embedding.table" in whole.average.averages
        for name, value in whole.average.averages.items():
            assert torch.equal(value, resumed.average.averages[name])
    whole.average.reconstruct(0.2, [tmp_path / "power_average.pt"])


def test_a_checkpoint_without_an_average_is_refused_or_begins_one(
    accelerator: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Run(accelerator, "freeze", averages=False)
    plain.train(0, 3)
    accelerator.save_state(str(tmp_path))
    plain.forget()
    refused = Run(accelerator, "freeze")
    with pytest.raises(StateError, match=r"holds no average of the weights.*begin_anew=True"):
        accelerator.load_state(str(tmp_path))
    refused.forget()
    resumed = Run(accelerator, "freeze", begin_anew=True)
    with caplog.at_level(logging.WARNING):
        accelerator.load_state(str(tmp_path))
    assert "one begins at its step, and knows none before it" in caplog.text
    resumed.train(3, 4)
    assert resumed.average.steps == 1
    for name, value in resumed.model.named_parameters():
        assert torch.equal(resumed.average.averages[name], value)
    resumed.train(4, STEPS)
    resumed.forget()


def test_a_held_out_loss_is_that_of_the_averages_and_leaves_no_trace() -> None:
    model = SMALL.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = PowerAverage(model)
    for step in range(5):
        SMALL.loss(model, step).backward()
        optimizer.step()
        average.step()

    def loss(model: nn.Module, batch: Any, draw: Any) -> Any:
        return (model(batch) - draw.noise(batch)).square().mean(1)

    batches = [torch.ones(3, 6)]
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    found = HeldOut(loss, batches, average=average).evaluate(model).loss
    assert all(torch.equal(raw[name], value) for name, value in model.state_dict().items())
    average.copy_to()
    assert found == HeldOut(loss, batches).evaluate(model).loss


def test_the_code_of_the_page_runs(accelerator: Any, capsys: Any) -> None:
    """The blocks in the section on averages, in the order of the page, around a loop of a stranger."""
    section = PAGE.read_text(encoding="utf-8").partition("## Averages of the weights")[2].partition("\n## ")[0]
    blocks = [part.split("```")[0] for part in section.split("```python\n")[1:]]
    family = BY_ID["sd"]
    unet = family.build()
    growth = GrowthScheduler(unet, GrowthConfig(), accelerator)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    growth.prepare(unet, num_training_steps=STEPS)

    def train(batch: int) -> None:
        accelerator.backward(family.loss(unet, batch))
        optimizer.step()
        optimizer.zero_grad()

    def held_out_loss(unet: Any, batch: Any, draw: Any) -> Any:
        noise = draw.noise(batch["sample"])
        timesteps = draw.timesteps(1000)
        prediction = unet(batch["sample"], timesteps, batch["encoder_hidden_states"]).sample
        return (prediction - noise).square().mean(dim=(1, 2, 3))

    names: dict[str, Any] = {
        "unet": unet,
        "growth": growth,
        "accelerator": accelerator,
        "train": train,
        "batches": range(STEPS),
        "held_out_loss": held_out_loss,
        "held_out_batches": [family.inputs(0, 2)],
    }
    first, second = blocks
    exec(first.replace("growth.fold(unet)", second + "growth.fold(unet)"), names)
    assert set(names["losses"]) == {0.16, 0.25}
    averages = names["average"].averages
    assert torch.equal(averages["conv_in.weight"], unet.state_dict()["conv_in.weight"])
