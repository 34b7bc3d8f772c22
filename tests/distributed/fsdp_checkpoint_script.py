"""Sharded runs that stop and go on, by torch's distributed checkpoints and by Accelerate's FSDP plugin."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from rank_tools import BY_ID, alone, finish, local, optimizer_of, refusal, same, seeds, shards_of, weights_of, worst
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from autoprog_diffusion import GrowthConfig, GrowthScheduler


FAMILY, STEPS = BY_ID["pixart"], 4
STOPS = {"boundary": 1, "inside": 2}  # optimizer steps
PLAIN = GrowthConfig(num_stages=3, order="suffix", boundaries=(1, 3), direction="unfreeze")
CONFIG = replace(PLAIN, stage_embedding_init="normal", ema_decay=0.9)


class Run:
    """A bare model under `fully_shard`, in a plain loop."""

    def __init__(self, direction: Any = "unfreeze") -> None:
        self.model = FAMILY.build().train()
        for block in self.model.transformer_blocks:
            fully_shard(block)
        fully_shard(self.model)
        self.growth = GrowthScheduler(self.model, replace(CONFIG, direction=direction))
        self.optimizer = optimizer_of(self.growth)
        self.growth.prepare(self.model, num_training_steps=STEPS, optimizer=self.optimizer)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            FAMILY.loss(self.model, seeds(step, 0)[dist.get_rank()]).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.growth.step()

    @property
    def parts(self) -> nn.Module:
        """All that the optimizer holds, under one roof: torch names what it saves by the modules it is in."""
        own = {id(parameter) for parameter in self.model.parameters()}
        table = [parameter for parameter in self.growth.parameters() if id(parameter) not in own]
        return nn.ModuleDict({"model": self.model, "stage_embedding": nn.ParameterList(table)})

    def save(self, folder: Path) -> None:
        weights, moments = get_state_dict(self.parts, self.optimizer)
        dcp.save({"weights": weights, "moments": moments}, checkpoint_id=folder)
        torch.save(self.growth.state_dict(), folder / f"growth_{dist.get_rank()}.pt")

    def read(self, folder: Path) -> None:
        weights, moments = get_state_dict(self.parts, self.optimizer)
        dcp.load({"weights": weights, "moments": moments}, checkpoint_id=folder)
        set_state_dict(self.parts, self.optimizer, model_state_dict=weights, optim_state_dict=moments)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "growth_0.pt", weights_only=True)
        with self.growth.loading(state):
            self.read(folder)
        self.growth.load_state_dict(state)

    def careless(self, folder: Path) -> None:
        """Read the checkpoint without telling growth: what had opened since stage 0 gets no moments back."""
        self.read(folder)
        self.growth.load_state_dict(torch.load(folder / "growth_0.pt", weights_only=True))

    def everything(self) -> dict[str, Tensor]:
        """Weights, the stage embedding, and the optimizer's state, as far as this rank holds them."""
        return shards_of(self.model, self.growth) | moments_of(self.model, self.optimizer)


def moments_of(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": local(value).clone()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def torch_checkpoints(root: Path, direction: str, stops: list[str]) -> dict[str, Any]:
    straight = Run(direction)
    straight.train(0, STEPS)
    result: dict[str, Any] = {}
    before = Run(direction)
    done = 0
    for name in stops:
        stop = STOPS[name]
        folder = root / direction / name
        before.train(done, done := stop)
        before.save(folder)
        resumed = Run(direction)
        resumed.load(folder)
        result[name] = {
            "loaded": same(resumed.everything(), before.everything()),
            "stage": [resumed.growth.stage, before.growth.stage],
            "open": [trains(run.model) for run in (resumed, before)],
        }
        resumed.train(stop, STEPS)
        result[name]["finished"] = same(resumed.everything(), straight.everything())
    if direction == "unfreeze":
        result["careless"] = refusal(lambda: Run().careless(root / direction / "inside"))
    return result


def trains(model: nn.Module) -> int:
    return sum(parameter.requires_grad for parameter in model.parameters())


def fsdp(**settings: Any) -> Accelerator:
    """An accelerator with FSDP version 2, which Accelerate itself never starts on CPUs: so set by hand."""
    accelerator = Accelerator(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BasicTransformerBlock"],
        cpu_ram_efficient_loading=False,
        **settings,
    )
    return accelerator


class Prepared:
    """The same in an Accelerate loop: growth is built before the shards are, and learns of them afterwards."""

    def __init__(self, kind: str = "SHARDED", config: GrowthConfig = PLAIN) -> None:
        self.accelerator = fsdp(state_dict_type=f"{kind}_STATE_DICT")
        bare = FAMILY.build().train()
        self.growth = GrowthScheduler(bare, config, self.accelerator)
        self.model, self.optimizer = self.accelerator.prepare(bare, optimizer_of(self.growth))
        self.growth.prepare(self.model, num_training_steps=STEPS)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.accelerator.backward(FAMILY.loss(self.model, seeds(step, 0)[dist.get_rank()]))
            self.accelerator.clip_grad_norm_(self.growth.parameters(), 0.3)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.growth.step()

    def everything(self) -> dict[str, Tensor]:
        return shards_of(self.model, self.growth) | moments_of(self.model, self.optimizer.optimizer)


def accelerate_checkpoints(root: Path, reference: dict[str, Tensor]) -> dict[str, Any]:
    straight = Prepared()
    straight.train(0, STEPS)
    result: dict[str, Any] = {"error": worst(weights_of(straight.model, straight.growth), reference)}
    for kind, stops in (("SHARDED", STOPS), ("FULL", {"inside": STOPS["inside"]})):
        before, done = Prepared(kind), 0
        for name, stop in stops.items():
            folder = str(root / kind / name)
            before.train(done, done := stop)
            before.accelerator.save_state(folder)
            resumed = Prepared(kind)
            resumed.accelerator.load_state(folder)
            loaded = same(resumed.everything(), before.everything())
            resumed.train(stop, STEPS)
            finished = same(resumed.everything(), straight.everything())
            result[f"{kind} {name}"] = {"loaded": loaded, "finished": finished}
    result["embedding"] = straight.growth.stage_embedding is not None
    straight.growth.fold(straight.accelerator.unwrap_model(straight.model))
    gathered = straight.accelerator.get_state_dict(straight.model)
    if dist.get_rank() == 0:
        FAMILY.build().load_state_dict(gathered)
        result["gathered"] = worst(gathered, reference)
    return result


def rewarmed(references: list[dict[str, Tensor]]) -> list[float]:
    """Deviations of a run whose new blocks warm up; the accelerator has put other parameters in their place."""
    run = Prepared(config=replace(PLAIN, rewarm_steps=2))
    run.train(0, STEPS)
    return [worst(weights_of(run.model, run.growth), reference) for reference in references]


def refused() -> dict[str, str]:
    model = FAMILY.build()
    wrong = {
        "search": (GrowthConfig(search="zero_shot"), {}),
        "stage_embedding": (GrowthConfig(stage_embedding=True, order="interleaved", direction="unfreeze"), {}),
        "stage_dropout": (GrowthConfig(stage_dropout=0.1, order="interleaved", direction="unfreeze"), {}),
        "activation_checkpointing": (PLAIN, {"activation_checkpointing": True}),
    }
    return {
        name: refusal(lambda c=c, s=s: GrowthScheduler(model, c, fsdp(**s)))  # type: ignore[misc]
        for name, (c, s) in wrong.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    cases: dict[str, list[str]] = {}
    for case in sys.argv[2].split(","):
        direction, stop = case.split("-")
        cases.setdefault(direction, []).append(stop)
    config = replace(PLAIN, stage_embedding=False)
    cold, warm = (weights_of(*alone(FAMILY, replace(config, rewarm_steps=n), STEPS, clip=0.3)) for n in (0, 2))
    dist.init_process_group("gloo")
    result: dict[str, Any] = {
        "torch": {way: torch_checkpoints(root / "torch", way, stops) for way, stops in cases.items()}
    }
    if "alone" in sys.argv:
        finish(result)
    result["accelerate"] = accelerate_checkpoints(root, cold)
    result["rewarmed"] = rewarmed([warm, cold])
    result["refused"] = refused()
    finish(result)


if __name__ == "__main__":
    main()
