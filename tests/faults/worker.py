"""One rank of a small real training that checks itself after every step, and can be told to die at a chosen point.

    torchrun --standalone --nproc_per_node 2 tests/faults/worker.py folder

`folder/settings.json` holds a `Settings`; the run resumes from the newest complete checkpoint in the folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import stage as stages
from autoprog_diffusion.growth.backends.ranks import checksums, rank, world_size
from autoprog_diffusion.search import probe
from autoprog_diffusion.training.checkpoints import checkpoint_step, find_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Settings:
    """A run, and where it dies: `place` is step, search, rebuild, checkpoint or nowhere, at optimizer step `at`."""

    seed: int = 0
    steps: int = 16
    num_stages: int = 3
    order: str = "suffix"
    search: str = "none"
    accumulation: int = 1
    ema: bool = False
    stage_embedding: bool = True
    every: int = 3
    place: str = "nowhere"
    at: int = 0
    dying_rank: int = 0


class Embedder(nn.Module):
    """What Diffusers calls a timestep embedder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(1, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        return self.linear_2(torch.relu(self.linear_1(time)))


class Tower(nn.Module):
    """A stem, a timestep embedder, eight blocks and a head, on vectors."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.time_embedding = nn.Linear(4, width), Embedder(width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, time = self.stem(x), self.time_embedding(time)
        for layer in self.layers:
            x = x + torch.tanh(layer(x + time))
        return self.head(x)


def die(settings: Settings, place: str, step: int) -> None:
    """Kill this process, without any cleaning up, where the settings say so; a file `killed` says it was done."""
    if (place, step, rank()) == (settings.place, settings.at, settings.dying_rank):
        (Path(sys.argv[1]) / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def arm(settings: Settings, now: dict[str, int], accelerator: Accelerator) -> None:
    """Put the deaths inside of a search, a rebuild of the reducer and a checkpoint where they belong."""
    scores, rebuild = probe.parameter_scores, stages.rebuild_reducer

    def dying_scores(*args: Any, **kwargs: Any) -> Any:
        die(settings, "search", now["step"])
        return scores(*args, **kwargs)

    def dying_rebuild(ddp: Any) -> None:
        rebuild(ddp)
        die(settings, "rebuild", now["step"])

    probe.parameter_scores, stages.rebuild_reducer = dying_scores, dying_rebuild
    accelerator.register_save_state_pre_hook(lambda *_: die(settings, "checkpoint", now["step"]))


def batch_loss(model: Any, settings: Settings, step: int, part: int) -> Tensor:
    seed = (settings.seed * 1009 + step) * 64 + part * 8 + rank()
    generator = torch.Generator().manual_seed(seed)
    x, time = torch.randn(8, 4, generator=generator), torch.rand(8, 1, generator=generator)
    return (model(x, time) - x.roll(1, 1) * time).square().mean()


def violations(model: nn.Module, before: dict[str, Tensor], step: int) -> list[str]:
    """What must never be: a frozen weight that moved, a gradient of one, ranks that differ."""
    named = dict(model.named_parameters())
    wrong = [f"step {step}: frozen {name} moved" for name, old in before.items() if not torch.equal(named[name], old)]
    wrong += [
        f"step {step}: {n} holds a gradient" for n, p in named.items() if not p.requires_grad and p.grad is not None
    ]
    if world_size() > 1:
        mine = checksums(named.values())
        others = [torch.empty_like(mine) for _ in range(world_size())]
        dist.all_gather(others, mine)
        wrong += [f"step {step}: ranks differ"] * any(not torch.equal(mine, other) for other in others)
    return wrong


def main(folder: Path) -> None:
    """Train from where the folder stands to the end, and write what came out."""
    settings = Settings(**json.loads((folder / "settings.json").read_text()))
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=settings.accumulation)
    torch.manual_seed(settings.seed)
    model, now, wrong = Tower(), {"step": 0}, []
    config = GrowthConfig(
        num_stages=settings.num_stages, order=settings.order, search=settings.search,
        search_objective="rank_vote",  # grows on this task, where gain per cost opens everything at once
        stage_embedding=settings.stage_embedding, ema_decay=0.9 if settings.ema else None,
    )  # fmt: skip
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if settings.ema else None
    growth = GrowthScheduler(model, config, accelerator, blocks=["layers.*"])
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    arm(settings, now, accelerator)
    growth.prepare(wrapped, num_training_steps=settings.steps)
    if average is not None:
        accelerator.register_for_checkpointing(average)
    newest = find_checkpoint(folder / "checkpoints", "latest")
    if newest is not None:
        accelerator.load_state(str(newest))
        now["step"] = checkpoint_step(newest)
    while now["step"] < settings.steps:
        before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        for part in range(settings.accumulation):
            with accelerator.accumulate(wrapped):
                accelerator.backward(batch_loss(wrapped, settings, now["step"], part))
                die(settings, "step", now["step"])
                accelerator.clip_grad_norm_(growth.parameters(), 1.0) if accelerator.sync_gradients else None
                optimizer.step()
                optimizer.zero_grad()
        if average is not None:
            average.update_parameters(model)
        now["step"] += 1
        wrong += violations(model, before, now["step"])
        growth.step()
        if now["step"] % settings.every == 0:
            save_checkpoint(accelerator, folder / "checkpoints", now["step"], 2)
    growth.fold(wrapped)
    if accelerator.is_main_process:
        weights = dict(model.state_dict())
        if average is not None:
            weights |= {f"ema.{name}": parameter for name, parameter in average.named_parameters()}
        save_file({name: tensor.detach().clone() for name, tensor in weights.items()}, folder / "final.safetensors")
        decisions = [(d["stage"], d["choice"]) for d in growth.decisions]
        (folder / "decisions.json").write_text(json.dumps({"plan": growth.plan.to_dict(), "decisions": decisions}))
    with open(folder / f"violations-{rank()}.txt", "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in wrong)
    accelerator.wait_for_everyone()
    del wrapped, optimizer
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
