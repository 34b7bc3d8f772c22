"""Power-function averages of parameters that FSDP2 shards over two ranks; started by `test_sharded_average.py`.

Its arguments, after the folder, are the directions of the loops against those of one process; with the first of
`CASES` come checkpoints and refusals, with the others half precision.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fsdp_checkpoint_script import FAMILY, fsdp
from rank_tools import finish, optimizer_of, refusal, same, seeds, shards_of, weights_of, whole, worst
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.evaluation.held_out import HeldOut
from autoprog_diffusion.growth.power_average import PowerAverage
from autoprog_diffusion.growth.power_function import relative_width


STEPS, STOP = 6, 3  # the stop is at a stage boundary
WIDTHS = (0.2, 0.28)
OTHER = 0.25
# What is asked of the average in each direction.
CASES: dict[str, dict[str, Any]] = {
    "freeze": {"freeze_at_average": True},
    "unfreeze": {},
    "window": {"freeze_at_average": True, "device": "cpu", "dtype": torch.float64},
}


class Run:
    """A plain loop with an average, on whole parameters with the batches of all ranks, or on shards."""

    def __init__(self, direction: Any, *, cut: bool) -> None:
        self.cut = cut
        self.model = FAMILY.build().train()
        if cut:
            for block in self.model.transformer_blocks:
                fully_shard(block)
            fully_shard(self.model)
        self.growth = GrowthScheduler(
            self.model, GrowthConfig(num_stages=2, direction=direction, stage_embedding_init="normal")
        )
        self.optimizer = optimizer_of(self.growth)
        self.growth.prepare(self.model, num_training_steps=STEPS, optimizer=self.optimizer)
        self.average = PowerAverage(self.model, growth=self.growth, widths=WIDTHS, **CASES[direction])

    def train(self, folder: Path) -> list[int]:
        """All steps, with a snapshot of each in `folder`; how often `average.step` has communicated in each."""
        folder.mkdir(parents=True, exist_ok=True)
        sent = []
        for step in range(STEPS):
            mine = [seeds(step, 0)[dist.get_rank()]] if self.cut else seeds(step, 0)
            losses = [FAMILY.loss(self.model, seed) for seed in mine]
            (sum(losses) / len(losses)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            with CommDebugMode() as mode:
                self.average.step()
            sent.append(mode.get_total_counts())
            self.average.save(folder / f"{step}.pt")
            self.growth.step()
        return sent

    def glance(self) -> None:
        """A validation pass: it leaves the root's parameters gathered."""
        with torch.no_grad():
            FAMILY.loss(self.model, 5)


def averages_of(average: PowerAverage, index: int) -> dict[str, Tensor]:
    """Whole averages of one of the widths that are tracked."""
    return {name: whole(value) for name, value in average.state_dict()["averages"][index].items()}


def loss(model: nn.Module, batch: Any, draw: Any) -> Tensor:
    del batch, draw
    return FAMILY.loss(model, 5)


def in_the_loop(direction: str, alone: Run, root: Path) -> dict[str, Any]:
    """A loop on shards against the same one on whole parameters."""
    run = Run(direction, cut=True)
    folder = root / direction
    result: dict[str, Any] = {"sent": run.train(folder), "errors": []}
    for index in range(len(WIDTHS)):
        result["errors"].append(worst(averages_of(run.average, index), averages_of(alone.average, index)))
    held = run.average.averages["transformer_blocks.0.ff.net.2.weight"]
    result["held"] = [held.numel(), run.model.transformer_blocks[0].ff.net[2].weight.numel(), str(held.dtype)]
    result["trace"] = without_trace(run)
    result["snapshot"] = snapshots(run, alone, folder)
    evaluated = HeldOut(loss, [torch.ones(1, 1)], average=run.average, growth=run.growth, draws=1)
    before = evaluated.evaluate(run.model).loss
    for each in (alone, run):
        each.average.copy_to()
        each.growth.fold(each.model)
    result["saved"] = worst(weights_of(run.model, run.growth), weights_of(alone.model, alone.growth))
    after = HeldOut(loss, [torch.ones(1, 1)], draws=1).evaluate(run.model).loss
    result["evaluated"] = [before, after]
    return result


def without_trace(run: Run) -> dict[str, bool]:
    """Averages in place, after passes that leave parameters gathered, and out again."""
    before = weights_of(run.model, run.growth)
    wanted = averages_of(run.average, 0)
    wanted.pop("stage_embedding.table")
    run.glance()
    run.average.store(run.model.parameters())
    run.glance()
    run.average.copy_to(run.model.parameters())
    inside = weights_of(run.model, run.growth)
    run.glance()
    run.average.restore(run.model.parameters())
    found = {"inside": all(torch.equal(inside[name], value.float()) for name, value in wanted.items())}
    run.glance()
    with run.average.in_place():
        run.glance()
    return {**found, "after": same(weights_of(run.model, run.growth), before)}


def snapshots(run: Run, alone: Run, folder: Path) -> dict[str, Any]:
    """A file of whole averages, another width from all of them, and one in a loop of shards."""
    last = torch.load(folder / f"{STEPS - 1}.pt", weights_only=True)
    theirs = alone.average.state_dict()["averages"]
    restored = PowerAverage(run.model, growth=run.growth, widths=WIDTHS, **CASES[run.growth.config.direction])
    restored.load_state_dict(last)
    found: dict[str, Any] = {"error": max(map(worst, last["averages"], theirs))}
    found["restored"] = same(restored.averages, run.average.averages)
    for each, place in ((run, folder), (alone, folder_alone(run.growth.config.direction))):
        each.average.reconstruct(OTHER, [place / f"{step}.pt" for step in range(STEPS)])
    with run.average.in_place(), alone.average.in_place():
        found["reconstructed"] = worst(weights_of(run.model, run.growth), weights_of(alone.model, alone.growth))
    found["widths"] = [run.average.width, *run.average.state_dict()["widths"]]
    for each in (run, alone):
        each.average.use(WIDTHS[0])
    return found


def folder_alone(direction: str) -> Path:
    """Where this rank leaves the snapshots of the loop on whole parameters."""
    return Path(sys.argv[1], os.environ["RANK"], direction)


class Prepared:
    """A loop of Accelerate's FSDP plugin."""

    def __init__(self) -> None:
        self.accelerator = fsdp(state_dict_type="SHARDED_STATE_DICT")
        bare = FAMILY.build().train()
        config = GrowthConfig(num_stages=2, direction="unfreeze")
        self.growth = GrowthScheduler(bare, config, self.accelerator)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer_of(self.growth))
        self.growth.prepare(self.model, num_training_steps=STEPS)
        self.average = PowerAverage(
            self.model,
            growth=self.growth,
            accelerator=self.accelerator,
            widths=WIDTHS,
            warn_of_decay=False,
        )

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.accelerator.backward(FAMILY.loss(self.model, seeds(step, 0)[dist.get_rank()]))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.step()
            self.growth.step()

    def everything(self) -> dict[str, Tensor]:
        found = shards_of(self.model, self.growth)
        for width in WIDTHS:
            self.average.use(width)
            found |= {f"{width} {name}": value.clone() for name, value in self.average.averages.items()}
        return found


def checkpoints(root: Path) -> dict[str, Any]:
    """A run stops and goes on; other processes read its checkpoint."""
    straight = Prepared()
    straight.train(0, STOP)
    for _ in range(2):  # into a folder that holds one already
        straight.accelerator.save_state(str(root / "checkpoint"))
    straight.average.save(root / "whole.pt")
    stopped = straight.everything()
    straight.train(STOP, STEPS)
    resumed = Prepared()
    resumed.accelerator.load_state(str(root / "checkpoint"))
    loaded = same(resumed.everything(), stopped)
    resumed.train(STOP, STEPS)
    finished = same(resumed.everything(), straight.everything())
    paths = [root / "checkpoint" / "power_average.pt", root / "whole.pt"]
    found = []
    for each, path in zip((straight, resumed), paths):
        each.average.reconstruct(OTHER, [path])
        found.append(each.average.averages)
    return {"loaded": loaded, "finished": finished, "reconstructed": same(*found)}


def refused() -> dict[str, str]:
    """An average that is built too early, and parameters that are cut meanwhile."""
    early = FAMILY.build()
    meanwhile = FAMILY.build()
    average = PowerAverage(meanwhile)
    fully_shard(meanwhile)
    return {"early": refusal(lambda: PowerAverage(early, accelerator=fsdp())), "meanwhile": refusal(average.step)}


def half_precision() -> dict[str, Any]:
    """Passes in bfloat16: an average against one by hand of the float32 weights after every step."""
    model = FAMILY.build().train()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, stage_embedding=False))
    optimizer = optimizer_of(growth)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    average = PowerAverage(model, growth=growth, widths=[relative_width(1.0)])
    totals: dict[str, Tensor] = {}
    for step in range(STEPS):
        FAMILY.loss(model, seeds(step, 0)[dist.get_rank()]).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step()
        for name, value in weights_of(model, growth).items():
            # Step t counts as the integral of s from t - 1 to t.
            totals[name] = totals.get(name, 0) + (2 * step + 1) / STEPS**2 * value.double()
        growth.step()
    found = averages_of(average, 0)
    error = max(((found[name] - total).norm() / total.norm().clamp(min=1e-3)).item() for name, total in totals.items())
    average.copy_to()
    equal = same(weights_of(model, growth), found)
    return {"types": sorted({str(value.dtype) for value in found.values()}), "error": error, "written": equal}


def chosen() -> list[float]:
    """The width in use, where every rank would choose another one by its own losses."""
    model = fully_shard(nn.Linear(4, 4))
    average = PowerAverage(model, widths=WIDTHS)
    losses = iter([[1.0, 2.0], [4.0, 2.0]][dist.get_rank()])
    return [*average.choose(lambda: next(losses)).values(), average.width]


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    references = {direction: Run(direction, cut=False) for direction in sys.argv[2:]}
    for direction, reference in references.items():
        reference.train(folder_alone(direction))
    dist.init_process_group("gloo")
    result: dict[str, Any] = {way: in_the_loop(way, reference, root) for way, reference in references.items()}
    if next(iter(CASES)) in references:
        result["chosen"] = chosen()
        result["checkpoints"] = checkpoints(root)
        result["refused"] = refused()
    else:
        result["half"] = half_precision()
    finish(result)


if __name__ == "__main__":
    main()
