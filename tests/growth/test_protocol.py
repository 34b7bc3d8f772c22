"""The scheduler is a `Growth`: pyright checks the assignment below, since this file is among those it reads."""

from __future__ import annotations

import torch

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.protocol import Growth


MEMBERS = sorted(name for name in vars(Growth) if not name.startswith("_"))


def started() -> Growth:
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
    scheduler = GrowthScheduler(model, GrowthConfig(stage_embedding=False), blocks=["*"])
    scheduler.prepare(model, num_training_steps=4, optimizer=torch.optim.SGD(scheduler.parameters(), lr=0.1))
    growth: Growth = scheduler
    return growth


def test_every_member_is_there() -> None:
    for name in MEMBERS:
        assert hasattr(started(), name)


def test_a_fixed_schedule_never_trains_a_candidate() -> None:
    growth = started()
    assert not growth.searching
    assert growth.step()
    assert not growth.searching
