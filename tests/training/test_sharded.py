"""What the recipes refuse under FSDP, by name and before anything is loaded, and what they settle by themselves."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from autoprog_diffusion.growth import ConfigError, GrowthConfig
from autoprog_diffusion.training.sharded import (
    block_classes,
    check_sharding,
    name_blocks,
    refuse_sharding,
    shard_on_cpu,
    sharded_growth,
)

from ..settings import BY_ID
from ..tasks.tiny import parse


@pytest.fixture
def sharding(accelerator: Any) -> Any:
    """The accelerator as it is where FSDP2 runs, which one process cannot start."""
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return accelerator


def test_the_committed_configurations_pass(sharding: Any) -> None:
    check_sharding(sharding, parse())


def test_scripts_that_save_whole_models_refuse_to_shard(sharding: Any) -> None:
    with pytest.raises(ConfigError, match="distributed_type: FSDP is for the recipes of diffusion models"):
        refuse_sharding(sharding)


def test_without_fsdp_nothing_is_refused(accelerator: Any) -> None:
    check_sharding(accelerator, parse("--optimizer", "adafactor", "--search", "zero_shot"))
    refuse_sharding(accelerator)


FLAGS_THAT_SHARDS = [
    (("--search", "zero_shot"), "--search zero_shot does not work on sharded parameters"),
    (("--optimizer", "adafactor"), "--optimizer adafactor keeps a state that sharded checkpoints do not hold"),
    (("--use_8bit_adam",), "--optimizer adamw8bit_bnb keeps a state"),
    (("--offload_optimizer",), "--offload_optimizer does not work on sharded parameters"),
    (("--trained_dtype", "bfloat16"), "--trained_dtype bfloat16 mixes types in one block"),
    (("--direction", "window", "--window_state", "park"), "--window_state park does not work on sharded"),
]


def test_flags_that_shards_do_not_allow_are_refused(sharding: Any) -> None:
    for flags, said in FLAGS_THAT_SHARDS:
        with pytest.raises(ConfigError, match=re.escape(said)):
            check_sharding(sharding, parse(*flags))


def test_a_plan_of_an_earlier_search_passes(sharding: Any) -> None:
    check_sharding(sharding, parse("--search", "zero_shot", "--growth_plan", "growth.json"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fsdp_version": 1}, "fsdp_version: 1 cannot grow: set fsdp_version: 2"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: true leaves the text encoders"),
        ({"state_dict_type": "FULL_STATE_DICT"}, "fsdp_state_dict_type: FULL_STATE_DICT is not written"),
    ],
)
def test_configurations_that_the_recipes_do_not_follow_are_refused(
    sharding: Any, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin writes it into the environment
    given = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, **settings}
    AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(**given)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_sharding(sharding, parse())


@pytest.mark.parametrize("size", ["tp_size", "cp_size"])
def test_other_ways_of_splitting_are_refused(sharding: Any, size: str) -> None:
    AcceleratorState._shared_state["parallelism_config"] = ParallelismConfig(**{size: 2, "dp_shard_size": 2})
    with pytest.raises(ConfigError, match=f"parallelism_config_{size}: 2 would split"):
        check_sharding(sharding, parse())


def test_the_stage_embedding_of_the_defaults_is_left_out_and_one_that_is_asked_for_stays(sharding: Any) -> None:
    config = GrowthConfig(stage_embedding=True)
    assert sharded_growth(config, (), sharding) == replace(config, stage_embedding=None)
    assert sharded_growth(config, ("stage_embedding",), sharding) is config  # the scheduler refuses it


def test_blocks_are_named_where_the_configuration_names_none(sharding: Any) -> None:
    plugin = sharding.state.fsdp_plugin
    name_blocks(sharding, BY_ID["dit"].build())
    assert plugin.transformer_cls_names_to_wrap == ["BasicTransformerBlock", "CombinedTimestepLabelEmbeddings"]
    name_blocks(sharding, BY_ID["sd3"].build())
    assert plugin.transformer_cls_names_to_wrap == ["BasicTransformerBlock", "CombinedTimestepLabelEmbeddings"]
    plugin.auto_wrap_policy = None
    name_blocks(sharding, BY_ID["sd3"].build())  # says that all is gathered at once


EVERY_BLOCK = [
    ("unet2d", ["ResnetBlock2D"]),
    ("sdxl", ["ResnetBlock2D", "Transformer2DModel"]),
    ("sd3", ["JointTransformerBlock"]),
    ("flux", ["FluxTransformerBlock", "FluxSingleTransformerBlock"]),
    ("allegro", ["AllegroTransformerBlock"]),
]


def test_every_block_is_cut_by_itself() -> None:
    for family, classes in EVERY_BLOCK:
        assert block_classes(BY_ID[family].build()) == classes


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    shard_on_cpu(None)
    assert not AcceleratorState._shared_state
