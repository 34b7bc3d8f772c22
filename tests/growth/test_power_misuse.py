"""Settings and loops that `PowerAverage` refuses or warns of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import ConfigError, GrowthConfig, GrowthScheduler, GrowthWarning, OrderError
from autoprog_diffusion.growth.power_average import PowerAverage

from .looping import SMALL, begin, train
from .test_power_average import STEPS, dit, weights_of


def test_bad_settings_are_refused_by_name() -> None:
    model, growth, _ = begin(STEPS, direction="freeze")
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ConfigError, match=rf"averages in {dtype} are refused.*torch\.float32, and device='cpu'"):
            PowerAverage(model, dtype=dtype)
    with pytest.raises(ConfigError, match=r"spans 0\.4 of the 8 steps"):
        PowerAverage(model, growth=growth, widths=[0.05])
    with pytest.raises(ConfigError, match="pass growth=, or leave it out"):
        PowerAverage(model, freeze_at_average=True)
    with pytest.raises(ConfigError, match=r"the width 0\.1 is not tracked"):
        PowerAverage(model).use(0.1)
    model.requires_grad_(False)
    with pytest.raises(OrderError, match="nothing to average"):
        PowerAverage(model)
    model, growth, _ = dit("freeze", ema_decay=0.9)
    with pytest.raises(ConfigError, match=r"an average of its own, ema_decay=0\.9: leave it out"):
        PowerAverage(model, growth=growth)


def test_a_plan_that_freezes_nothing_freezes_nothing_at_averages() -> None:
    model, growth, _ = begin(STEPS, direction="unfreeze")
    with pytest.raises(ConfigError, match=r"freezes nothing, such as that of direction='unfreeze' here"):
        PowerAverage(model, growth=growth, freeze_at_average=True)


def test_the_wrong_place_in_the_loop_is_an_error() -> None:
    model, growth, optimizer = begin(STEPS, direction="freeze")
    average = PowerAverage(model, growth=growth)
    train(model, optimizer, 0)
    growth.step()
    with pytest.raises(OrderError, match=r"after 1 steps of growth, not 0.*before growth\.step"):
        average.step()
    with pytest.raises(OrderError, match="nothing to write back"):
        average.restore()
    with pytest.raises(OrderError, match=r"1 of 1 parameters are not those of the averaged Small"):
        average.copy_to([nn.Parameter(torch.zeros(3))])
    unprepared = GrowthScheduler(SMALL.build(), GrowthConfig(num_stages=2), blocks=SMALL.patterns)
    with pytest.raises(OrderError, match=r"call growth\.prepare"):
        PowerAverage(model, growth=unprepared)


def test_before_its_first_step_an_average_changes_nothing() -> None:
    model = SMALL.build()
    before = weights_of(model)
    average = PowerAverage(model)
    with average.in_place():
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("FSDP", r"fsdp_version=1 flattens parameters.*or FSDP with fsdp_version: 2"),
        ("DEEPSPEED", r"distributed_type=DEEPSPEED spreads the parameters.*or FSDP with fsdp_version: 2"),
    ],
)
def test_backends_that_averages_do_not_follow_are_refused_by_name(accelerator: Any, kind: str, words: str) -> None:
    from accelerate.utils import DistributedType

    accelerator.state.distributed_type = DistributedType[kind]
    with pytest.raises(OrderError, match=words):
        PowerAverage(nn.Linear(2, 2), accelerator=accelerator)


def scheduled(accelerator: Any, factor: Any) -> tuple[PowerAverage, Any, Any]:
    model = nn.Linear(2, 2)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=1.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, factor)
    return PowerAverage(model, accelerator=accelerator), optimizer, schedule


def test_a_rate_that_decays_is_told_once(accelerator: Any) -> None:
    average, optimizer, schedule = scheduled(accelerator, lambda step: 1 - step / 10)
    for _ in range(6):
        average.step()
        optimizer.step()
        schedule.step()
    with pytest.warns(
        GrowthWarning, match=r"decayed to 0\.4: to such a schedule an average of the weights adds little"
    ):
        average.step()
    schedule.step()
    average.step()


def test_a_warmed_up_constant_rate_is_what_it_is_for(accelerator: Any) -> None:
    average, optimizer, schedule = scheduled(accelerator, lambda step: min(1.0, step / 3))
    for _ in range(6):
        average.step()
        optimizer.step()
        schedule.step()


def test_an_average_between_micro_batches_is_an_error() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(nn.Linear(2, 2))
    average = PowerAverage(model, accelerator=accelerator)
    with accelerator.accumulate(model), pytest.raises(OrderError, match=r"inside `if accelerator\.sync_gradients:`"):
        average.step()
    with accelerator.accumulate(model):
        average.step()
    AcceleratorState._reset_state(reset_partial_state=True)
