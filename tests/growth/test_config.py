"""`GrowthConfig`: every bad field is named, and the configuration survives JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autoprog_diffusion import GrowthConfig, GrowthError
from autoprog_diffusion.growth import ConfigError


pytestmark = pytest.mark.smoke


BAD_VALUES = [
    ({"num_stages": 0}, "num_stages=0"),
    ({"num_stages": -1}, "num_stages=-1"),
    ({"num_stages": 2.5}, "num_stages=2.5"),
    ({"num_stages": True}, "num_stages=True"),
    ({"num_stages": "4"}, "num_stages='4'"),
    ({"order": "random"}, "order='random'.*interleaved.*suffix.*prefix"),
    ({"direction": "shrink"}, "direction='shrink'.*unfreeze.*freeze"),
    ({"direction": "freeze", "search": "zero_shot"}, "search='zero_shot' chooses what to open.*unfreeze"),
    ({"direction": "window", "search": "zero_shot"}, "search='zero_shot' chooses what to open.*unfreeze"),
    ({"direction": "window", "sweeps": 0}, "sweeps=0"),
    ({"direction": "window", "sweeps": 1.5}, "sweeps=1.5"),
    ({"direction": "window", "sweeps": 3}, "num_stages=4 is not a multiple of sweeps=3.*num_stages=3"),
    ({"direction": "window", "sweeps": 5}, "num_stages=4 is not a multiple of sweeps=5.*num_stages=5"),
    ({"direction": "window", "min_trainable": 0.5}, "min_trainable=0.5 has no effect.*window_share"),
    (
        {"direction": "window", "window_share": 0.2},
        "window_share=0.2 is less than each of 4 windows.*at least 0.25",
    ),
    ({"direction": "window", "window_share": 0}, "window_share=0 "),
    ({"direction": "window", "window_share": 1.5}, "window_share=1.5"),
    ({"direction": "window", "window_share": "0.5"}, "window_share='0.5'"),
    ({"direction": "window", "window_state": "offload"}, "window_state='offload'.*release.*park"),
    ({"embedders_always": 1}, "embedders_always=1 is not allowed"),
    (
        {"embedders_always": True, "search": "zero_shot"},
        "embedders_always=True does not go with search='zero_shot'",
    ),
    ({"sweeps": 2}, 'sweeps=2 is not allowed.*direction="window"'),
    ({"direction": "unfreeze", "window_share": 0.5}, 'window_share=0.5 is not allowed.*direction="window"'),
    ({"direction": "freeze", "rewarm_steps": 3}, "rewarm_steps=3 has no effect.*use 0"),
    ({"search": "one_shot"}, "search='one_shot'.*zero_shot"),
    ({"stage_embedding_init": "ones"}, "stage_embedding_init='ones'.*carry"),
    ({"min_trainable": 0}, "min_trainable=0 "),
    ({"min_trainable": 1.5}, "min_trainable=1.5"),
    ({"min_trainable": -0.1}, "min_trainable=-0.1"),
    ({"min_trainable": float("nan")}, "min_trainable=nan"),
    ({"stage_dropout": 1.0}, "stage_dropout=1.0"),
    ({"stage_dropout": -0.1}, "stage_dropout=-0.1"),
    ({"stage_dropout": 0.1, "stage_embedding": False}, "stage_dropout=0.1 needs a stage embedding"),
    ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ({"ema_decay": -0.5}, "ema_decay=-0.5"),
    ({"resolution_multiple": 0}, "resolution_multiple=0"),
    ({"resolution_multiple": 8.0}, "resolution_multiple=8.0"),
    ({"num_stages": 2, "resolutions": (0.5, 64)}, "mix fractions"),
    ({"num_stages": 2, "resolutions": (1.0, 0.5)}, r"\(1.0, 0.5\) decrease"),
    ({"num_stages": 2, "resolutions": (64, 32)}, r"\(64, 32\) decrease"),
    ({"num_stages": 2, "resolutions": (32,)}, r"\(32,\) has 1 values for num_stages=2"),
    ({"num_stages": 2, "resolutions": (32, 60)}, "60 is not a multiple of 8.*use 56"),
    ({"num_stages": 2, "resolutions": (3, 32)}, "3 is not a multiple of 8.*use 8"),
    ({"num_stages": 2, "resolutions": (0, 32)}, "resolution 0 is not allowed"),
    ({"num_stages": 2, "resolutions": (-0.5, 1.0)}, "resolution -0.5 is not allowed"),
    ({"num_stages": 2, "resolutions": (32.5, 64)}, "resolution 32.5 .* whole number"),
    ({"num_stages": 2, "resolutions": (float("nan"), 64)}, "resolution nan"),
    ({"num_stages": 2, "resolutions": (32, float("inf"))}, "resolution inf"),
    ({"num_stages": 2, "resolutions": ("32", "64")}, "resolution '32'"),
    ({"num_stages": 2, "resolutions": (True, True)}, "resolution True"),
    ({"num_stages": 3, "boundaries": (10,)}, r"boundaries=\(10,\) has 1 values for num_stages=3.* 2 values"),
    ({"num_stages": 2, "boundaries": (0,)}, r"boundaries=\(0,\)"),
    ({"num_stages": 2, "boundaries": (1.0,)}, r"boundaries=\(1.0,\)"),
    ({"num_stages": 2, "boundaries": ("10",)}, r"boundaries=\('10',\)"),
    ({"num_stages": 2, "boundaries": (True,)}, r"boundaries=\(True,\)"),
    ({"num_stages": 3, "boundaries": (0.5, 10)}, r"\(0.5, 10\).*all steps .* or all fractions"),
    ({"num_stages": 3, "boundaries": (20, 10)}, r"\(20, 10\) do not increase"),
    ({"num_stages": 3, "boundaries": (0.5, 0.5)}, r"\(0.5, 0.5\) do not increase"),
]


def test_bad_values_are_named() -> None:
    for settings, named in BAD_VALUES:
        with pytest.raises(ConfigError, match=named):
            GrowthConfig(**settings)


VALUES = [("min_trainable", "0.5"), ("stage_dropout", "0.1"), ("ema_decay", "0.99"), ("resolutions", 64)]


def test_values_of_a_wrong_type_are_named() -> None:
    for field, value in VALUES:
        with pytest.raises(ConfigError, match=f"{field}=.*{value}"):
            GrowthConfig.from_dict({field: value})


VALUES_AT_THE = [
    {"num_stages": 1, "min_trainable": 1},
    {"stage_dropout": 0.999},
    {"ema_decay": 0.0},
    {"num_stages": 2, "resolutions": (0.5, 1)},
    {"num_stages": 2, "resolutions": (32.0, 64)},
    {"num_stages": 2, "resolutions": (64, 64)},
    {"num_stages": 3, "boundaries": (0.2, 0.9)},
    {"num_stages": 1, "boundaries": ()},
    {"direction": "window", "num_stages": 1},
    {"direction": "window", "num_stages": 3, "window_share": 1 / 3, "rewarm_steps": 5},
    {"direction": "window", "num_stages": 6, "sweeps": 2, "boundaries": (1, 2, 3, 4, 5)},
]


def test_values_at_the_edge_are_allowed() -> None:
    for settings in VALUES_AT_THE:
        config = GrowthConfig(**settings)
        assert GrowthConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whole_floats_above_one_are_pixels() -> None:
    resolutions = GrowthConfig(num_stages=2, resolutions=(32.0, 64)).resolutions
    assert resolutions == (32, 64)
    assert all(type(value) is int for value in resolutions)
    assert all(type(value) is float for value in GrowthConfig(num_stages=2, resolutions=(0.5, 1)).resolutions)


def test_errors_are_value_errors() -> None:
    assert issubclass(ConfigError, GrowthError)
    assert issubclass(GrowthError, ValueError)


def test_json_round_trip(tmp_path: Path) -> None:
    config = GrowthConfig(
        num_stages=3,
        order="prefix",
        direction="unfreeze",
        min_trainable=0.5,
        stage_embedding_init="carry",
        stage_dropout=0.1,
        ema_decay=0.999,
        resolutions=(32, 48, 64),
        accumulations=(1, 2, 4),
        resolution_multiple=16,
        boundaries=(10, 20),
        rewarm_steps=5,
        stage_embedding=True,
        checkpointing="auto",
        memory_gb=24,
        frozen_dtype="bfloat16",
        embedders_always=True,
    )
    unchanged = GrowthConfig()
    changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(unchanged, f.name)]
    left = {f.name for f in dataclasses.fields(config)} - set(changed)
    of_windows = {"sweeps", "window_share", "window_state"}
    assert {name for name in left if not name.startswith("search")} == of_windows
    windows = GrowthConfig(direction="window", num_stages=6, sweeps=3, window_share=0.6, window_state="park")
    assert GrowthConfig.from_dict(json.loads(json.dumps(windows.to_dict()))) == windows
    config.save(tmp_path / "config.json")
    loaded = GrowthConfig.load(tmp_path / "config.json")
    assert loaded == config
    freezing = GrowthConfig(direction="freeze")
    assert GrowthConfig.from_dict(freezing.to_dict()) == freezing != unchanged
    assert hash(loaded) == hash(config)


def test_an_open_direction_freezes_unless_a_search_opens_blocks() -> None:
    assert GrowthConfig().freezes
    assert not GrowthConfig(search="zero_shot").freezes
    assert not GrowthConfig(direction="unfreeze").freezes
    with pytest.raises(ConfigError, match='rewarm_steps=3 has no effect.*direction="unfreeze"'):
        GrowthConfig(rewarm_steps=3)


def test_the_paper_as_published_takes_overrides() -> None:
    paper = GrowthConfig.autoprog_zero()
    assert not paper.freezes
    assert (paper.order, paper.search, paper.search_objective) == ("interleaved", "zero_shot", "rank_vote")
    assert (paper.stage_embedding_init, paper.stage_dropout) == ("normal", 0.1)
    assert paper.resolutions == (0.25, 0.5, 0.75, 1.0)
    assert GrowthConfig.autoprog_zero(search="none", num_stages=2, resolutions=None).num_stages == 2
    with pytest.raises(ConfigError, match=r"no field\(s\) \['stages'\]"):
        GrowthConfig.autoprog_zero(stages=3)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"no field\(s\) \['stages'\].*num_stages"):
        GrowthConfig.from_dict({"stages": 4})


def test_files_that_are_no_configuration_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    for text in ("{", "", "[]", "[1]", "4", "null"):
        tmp_path = tmp_path_factory.mktemp("case")
        path = tmp_path / "config.json"
        path.write_text(text)
        with pytest.raises(ConfigError):
            GrowthConfig.load(path)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GrowthConfig().num_stages = 2  # type: ignore[misc]
