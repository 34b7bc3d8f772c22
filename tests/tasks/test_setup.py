from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from autoprog_diffusion.growth import GrowthConfig, GrowthError, GrowthPlan
from autoprog_diffusion.growth.errors import ConfigError, PlanError
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.training.build import RowDataset, make_loader
from autoprog_diffusion.training.optimizers import make_optimizer
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import COUNT, accelerator_of, growth_of, parse


NewAccelerator = Callable[[Arguments], Accelerator]


def test_the_accelerator_accumulates_as_asked_and_writes_below_the_output(
    tmp_path: Path, new_accelerator: NewAccelerator
) -> None:
    args = parse("--output_dir", tmp_path, "--gradient_accumulation_steps", 3, "--mixed_precision", "bf16")
    accelerator = new_accelerator(args)
    assert accelerator.gradient_accumulation_steps == 3
    assert accelerator.gradient_state.sync_with_dataloader is False
    assert accelerator.mixed_precision == "bf16"
    assert accelerator.trackers == []
    assert accelerator.logging_dir == str(tmp_path / "logs")


def order(loader: object, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return [batch["index"].tolist() for batch in loader]


def test_the_order_depends_on_seed_and_epoch_alone(
    data: datasets.Dataset, tmp_path: Path, new_accelerator: NewAccelerator
) -> None:
    def loader(seed: int) -> tuple:
        args = parse("--output_dir", tmp_path, "--seed", seed, "--train_batch_size", 5)
        accelerator = new_accelerator(args)
        return accelerator, accelerator.prepare(make_loader(data, args, 64))

    _, first = loader(0)
    epochs = [order(first, epoch) for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [COUNT // 5] * 3
    assert len({str(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert len(set(sum(epoch, []))) == COUNT // 5 * 5
    set_seed(123)
    accelerator, again = loader(0)
    assert order(again, 2) == epochs[2]
    again.set_epoch(1)
    assert [b["index"].tolist() for b in accelerator.skip_first_batches(again, 2)] == epochs[1][2:]
    assert order(loader(1)[1], 0) != epochs[0]


def test_starting_an_epoch_leaves_the_global_generator_alone(
    data: datasets.Dataset, tmp_path: Path, new_accelerator: NewAccelerator
) -> None:
    args = parse("--output_dir", tmp_path, "--train_batch_size", 4)
    loader = new_accelerator(args).prepare(make_loader(data, args, 64))
    state = torch.get_rng_state()
    order(loader, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_crops_and_flips_depend_on_seed_epoch_and_row_alone(data: datasets.Dataset) -> None:
    rows = RowDataset(data, parse("--random_flip"), 32)

    def pixels(epoch: int) -> list[torch.Tensor]:
        rows.epoch = epoch
        return [rows[index]["pixel_values"] for index in range(8)]

    first = pixels(0)
    assert first[0].shape == (3, 32, 32)
    second, again = pixels(1), pixels(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert sum(not torch.equal(a, b) for a, b in zip(first, second)) >= 4
    other = RowDataset(data, parse("--random_flip", "--seed", 1), 32)
    assert any(not torch.equal(a, other[index]["pixel_values"]) for index, a in enumerate(first))


def test_worker_processes_give_the_same_images(data: datasets.Dataset) -> None:
    def images(workers: int) -> torch.Tensor:
        flags = ("--no-cache_latents", "--train_batch_size", 6, "--dataloader_num_workers", workers)
        loader = make_loader(data, parse(*flags), 32)
        return torch.cat([batch["pixel_values"] for batch in loader])

    assert torch.equal(images(0), images(1))


def test_cached_training_reads_no_images(data: datasets.Dataset) -> None:
    batch = next(iter(make_loader(data, parse("--train_batch_size", 4, "--dataloader_num_workers", 1), 64)))
    assert set(batch) == {"index"}
    assert batch["index"].shape == (4,)


def test_the_optimizer_has_the_settings_of_the_flags() -> None:
    flags = ("--learning_rate", 0.01, "--adam_beta1", 0.8, "--adam_beta2", 0.9, "--adam_epsilon", 1e-6)
    weight = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = make_optimizer(weight, parse(*flags, "--adam_weight_decay", 0.3).train, 8)
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.01, (0.8, 0.9), 1e-6, 0.3)
    assert make_optimizer(weight, parse(*flags, "--scale_lr").train, 8).param_groups[0]["lr"] == pytest.approx(0.08)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8bit_adam_without_bitsandbytes_is_refused_with_the_remedy() -> None:
    with pytest.raises(GrowthError, match=r"--use_8bit_adam needs bitsandbytes: pip install bitsandbytes"):
        make_optimizer([torch.nn.Parameter(torch.zeros(2))], parse("--use_8bit_adam").train, 1)


def test_growth_settings_reach_the_configuration() -> None:
    args = parse(
        "--num_stages", 3, "--search", "none", "--order", "suffix", "--min_trainable", 0.5, "--boundaries", 10, 20,
        "--resolutions", 0.5, 0.5, 1, "--stage_embedding_init", "carry", "--stage_dropout", 0.1, "--use_ema",
        "--ema_decay", 0.9, "--direction", "unfreeze",
    )  # fmt: skip
    assert growth_of(args, 4) == (
        GrowthConfig(
            num_stages=3, order="suffix", min_trainable=0.5, resolutions=(0.5, 0.5, 1.0), boundaries=(10, 20),
            stage_embedding=True, stage_embedding_init="carry", stage_dropout=0.1, ema_decay=0.9,
                resolution_multiple=4, direction="unfreeze",
        ),
        None,
    )  # fmt: skip


def test_the_direction_follows_the_search_unless_it_is_given() -> None:
    assert growth_of(parse(), 4)[0].freezes
    assert not growth_of(parse("--direction", "unfreeze"), 4)[0].freezes
    assert not growth_of(parse("--search", "zero_shot"), 4)[0].freezes
    with pytest.raises(GrowthError, match="search='zero_shot' chooses what to open"):
        growth_of(parse("--search", "zero_shot", "--direction", "freeze"), 4)


def test_the_average_of_the_embedding_needs_an_average_of_the_model() -> None:
    assert growth_of(parse("--ema_decay", 0.9), 4)[0].ema_decay is None


def test_boundaries_are_steps_or_fractions() -> None:
    assert growth_of(parse("--num_stages", 3, "--boundaries", 1, 20), 4)[0].boundaries == (1, 20)
    assert growth_of(parse("--num_stages", 3, "--boundaries", 0.2, 0.5), 4)[0].boundaries == (0.2, 0.5)


def test_growth_off_is_one_stage_of_everything() -> None:
    flags = ("--growth", "off", "--num_stages", 4, "--resolutions", 0.5, 0.5, 1, 1, "--growth_plan", "missing.json")
    config, plan = growth_of(parse(*flags), 4)
    assert plan is None
    assert (config.num_stages, config.min_trainable, config.stage_embedding) == (1, 1.0, False)
    assert config.resolutions is None


GROWTH_SETTINGS = [
    ("--num_stages", 0),
    ("--min_trainable", 0),
    ("--stage_dropout", 1),
    ("--stage_dropout", 0.1, "--no-stage_embedding"),
    ("--resolutions", 0.5, 1),
    ("--resolutions", 1, 1, 1, 0.5),
    ("--resolutions", 0.5, 0.5, 64, 64),
    ("--resolutions", 30, 64, 64, 64),
    ("--boundaries", 1, 2),
    ("--boundaries", 1, 3, 2),
    ("--boundaries", 0.5, 2, 3),
    ("--boundaries", 0, 2, 3),
    ("--use_ema", "--ema_decay", 1.5),
]


def test_growth_settings_that_are_not_allowed() -> None:
    for flags in GROWTH_SETTINGS:
        with pytest.raises(ConfigError):
            growth_of(parse(*flags), 4)


def test_a_plan_is_read_from_its_file_and_from_a_report(tmp_path: Path) -> None:
    plan = fixed_plan(GrowthConfig(num_stages=3, resolutions=(0.5, 0.5, 1.0)), 10, 30)
    plan.save(tmp_path / "plan.json")
    (tmp_path / "growth.json").write_text(json.dumps({"plan": plan.to_dict(), "stages": []}))
    for name in ("plan.json", "growth.json"):
        config, found = growth_of(parse("--growth_plan", tmp_path / name), 4)
        assert found == plan
        assert config.num_stages == 3


A_PLAN_FILE = [None, "", "{'a': 1}", "{}", "[1, 2]", "3", '{"plan": null}', b"\xff\xfe\x00"]


def test_a_plan_file_that_cannot_be_used_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    for content in A_PLAN_FILE:
        tmp_path = tmp_path_factory.mktemp("case")
        path = tmp_path / "plan.json"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(PlanError):
            growth_of(parse("--growth_plan", path), 4)


def test_a_plan_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the growth plan"):
        GrowthPlan.load(tmp_path)


def test_the_tracker_none_starts_none(tmp_path: Path, new_accelerator: NewAccelerator) -> None:
    accelerator = new_accelerator(parse("--output_dir", tmp_path))
    assert isinstance(accelerator, Accelerator)
    assert accelerator_of(parse("--output_dir", tmp_path)).log_with == []


def test_rows_of_a_group_come_together(data: datasets.Dataset) -> None:
    args = parse("--train_batch_size", 2)
    groups = [(0, 20), (1, 21), (2, 22)]
    rows = RowDataset(data, args, None, groups)
    assert len(rows) == 3
    assert rows[1]["index"].tolist() == [1, 21]
    batches = list(make_loader(data, args, 64, groups))
    assert [batch["index"].shape for batch in batches] == [(2, 2)]
    images = RowDataset(data, args, 32, groups)
    assert images[2]["pixel_values"].shape == (2, 3, 32, 32)
    alone = RowDataset(data, parse("--center_crop"), 32)
    together = RowDataset(data, parse("--center_crop"), 32, groups)[2]
    for place, row in enumerate(groups[2]):
        assert torch.equal(together["pixel_values"][place], alone[row]["pixel_values"])


def test_an_item_tells_where_it_was_cut(data: datasets.Dataset) -> None:
    """The pictures are 40x32 and 32x40: the longer side leaves 8 pixels to choose from, at 32."""
    rows, seen = RowDataset(data, parse(), 32), set()
    for rows.epoch in range(20):
        tall, wide = rows[0]["window"].tolist(), rows[1]["window"].tolist()
        assert (tall[:2], tall[3]) == ([40, 32], 0)
        assert wide[:3] == [32, 40, 0]
        seen |= {tall[2], wide[3]}
    assert len(seen) > 4
    assert seen <= set(range(9))
