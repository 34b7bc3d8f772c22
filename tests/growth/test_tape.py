"""FLOPs of a stage from the tape of one forward pass are those of a real step, exactly."""

from __future__ import annotations

import pytest
import torch

from autoprog_diffusion import GrowthConfig
from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.scheduler import GrowthScheduler
from autoprog_diffusion.growth.tape import Call, Tape
from autoprog_diffusion.growth.tape_recorder import Recorder

from ..settings import BY_ID, DENOISERS


# PyTorch's counter fails on a real step of it with a frozen front: it wants a gradient of all inputs.
UNCOUNTED = {"svd"}
IDS = [row.id for row in DENOISERS if row.id not in UNCOUNTED]
QUICK = {"sd", "dit", "lumina2"}
STEPS = 12
CONFIGS = {
    "freeze": {"num_stages": 6},
    "unfreeze, interleaved": {"num_stages": 3, "direction": "unfreeze", "order": "interleaved"},
    "window": {"num_stages": 2, "direction": "window"},
    "no stage embedding": {"num_stages": 3, "stage_embedding": False},
    "embedders": {"num_stages": 3, "embedders_always": True},
}
CASES = [
    pytest.param(id, name, marks=() if id in QUICK and name == "freeze" else pytest.mark.slow, id=f"{id}-{name}")
    for id in IDS
    for name in CONFIGS
]


@pytest.mark.parametrize(("id", "name"), CASES)
def test_flops_of_every_stage_are_those_of_its_steps(id: str, name: str) -> None:
    row = BY_ID[id]
    config = GrowthConfig(**CONFIGS[name])  # type: ignore[arg-type]
    model = row.build().train()
    growth = GrowthScheduler(model, config)
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    own = set(model.parameters())
    tape = Tape()
    with Recorder(tape, model, growth.layout, [each for each in growth.parameters() if each not in own]):
        row.loss(model, 0)
    tape.end()
    assert tape.exact
    for index, stage in enumerate(growth.plan.stages):
        while growth.stage < index:
            growth.step()
        with flop_counter() as counter:
            row.loss(model, 0).backward()
        assert tape.stage_flops(growth.layout, stage.blocks) == counter.get_total_flops()
        optimizer.zero_grad()


def test_an_operation_without_a_known_gradient_makes_a_tape_inexact() -> None:
    one = torch.ones(1)
    call = Call(name="no_such_product", args=(one,), kwargs={}, result=one, flops=3, key=id)
    tape = Tape()
    tape.note(call)
    assert not tape.exact
    tape.end()
    assert tape.flops((), ()) == 3
