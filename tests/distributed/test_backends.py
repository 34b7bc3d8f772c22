"""Backends that cannot grow are refused at construction, by name, with the reason and what works instead."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import OrderError

from ..settings import BY_ID


INSTEAD = "use one process, DistributedDataParallel, or FSDP with fsdp_version: 2"
ZERO = {
    0: "DistributedDataParallel does the same",
    1: "frozen parameters go on being updated",
    2: "parameters opened later never start",
    3: "partitions of parameters",
}


def run_by(accelerator: Any, kind: str, **plugins: Any) -> Any:
    """The accelerator as it is where `kind` runs, which on this machine cannot be started; the fixture resets it."""
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType[kind]
    AcceleratorState._shared_state.update(plugins)
    return accelerator


def refused(accelerator: Any, **settings: Any) -> str:
    with pytest.raises(OrderError) as error:
        GrowthScheduler(BY_ID["dit"].build(), GrowthConfig(**settings), accelerator)
    return str(error.value)


@pytest.mark.parametrize("stage", sorted(ZERO))
def test_every_zero_stage_is_refused_with_its_reason(accelerator: Any, stage: int) -> None:
    plugin = DeepSpeedPlugin(zero_stage=stage)
    run_by(accelerator, "DEEPSPEED", deepspeed_plugins={"default": plugin})
    plugin._set_selected(True)
    said = refused(accelerator)
    assert said.startswith(f"distributed_type=DEEPSPEED with ZeRO stage {stage} cannot grow: ")
    assert ZERO[stage] in said
    assert INSTEAD in said


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("MEGATRON_LM", "Megatron-LM owns the model's layers"),
        ("XLA", "XLA compiles"),
        ("MULTI_HPU", "nobody has tried"),
    ],
)
def test_other_backends_are_refused_by_name(accelerator: Any, kind: str, reason: str) -> None:
    said = refused(run_by(accelerator, kind))
    assert said.startswith(f"distributed_type={kind} cannot grow: {reason}")
    assert INSTEAD in said


def test_fsdp_version_1_is_refused(accelerator: Any) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    said = refused(run_by(accelerator, "FSDP", fsdp_plugin=plugin), stage_embedding=False)
    assert said.startswith("fsdp_version=1 cannot grow: it flattens frozen and trainable parameters into one")
    assert INSTEAD in said


def test_fsdp_version_2_grows_without_a_stage_embedding(accelerator: Any) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    run_by(accelerator, "FSDP", fsdp_plugin=plugin)
    growth = GrowthScheduler(
        model := BY_ID["dit"].build(), GrowthConfig(order="interleaved", direction="unfreeze"), accelerator
    )
    assert len(list(growth.parameters())) == len(list(model.parameters()))
    assert "set stage_embedding=False" in refused(accelerator, stage_embedding=True)
    assert "search='zero_shot' does not work on sharded parameters" in refused(accelerator, search="zero_shot")
