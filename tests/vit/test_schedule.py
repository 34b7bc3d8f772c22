"""Optimizer groups, learning rate, flags and presets of pretraining."""

from __future__ import annotations

import pytest
import torch

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.plan import GrowthPlan, Stage
from autoprog_diffusion.vit.models import build_model
from autoprog_diffusion.vit.training.arguments import TrainArguments, parse, preset_names, preset_words
from autoprog_diffusion.vit.training.clock import share_of_cost
from autoprog_diffusion.vit.training.finetuning import Finetuning
from autoprog_diffusion.vit.training.schedule import learning_rate, make_optimizer, make_schedule


def test_the_learning_rate_warms_up_and_follows_the_cosine_to_its_end() -> None:
    args = TrainArguments(lr=0.1, warmup_lr=0.01, min_lr=0.001, warmup_steps=4)
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, args)
    schedule, rates = make_schedule(optimizer, args, lambda step: step / 20, 5), []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.01, 0.0325, 0.055, 0.0775, learning_rate(4, args, 4, 4 / 20)])
    assert rates[10] == pytest.approx((0.1 + 0.001) / 2)
    assert rates[20] == pytest.approx(0.001)
    assert all(late < early for early, late in zip(rates[4:], rates[5:]))


def test_the_clock_of_the_cost_adds_up_what_every_step_costs() -> None:
    stages = (Stage(0, (0, 1), 16), Stage(7, (0, 1, 2), 24), Stage(20, (0, 1, 2, 3), 32))
    plan = GrowthPlan(4, 31, stages)
    for frozen_blocks_run in (False, True):
        costs = []
        for step in range(31):
            stage = stages[plan.stage_at(step)]
            forward = 4 if frozen_blocks_run else len(stage.blocks)
            costs.append((forward + 2 * len(stage.blocks)) * stage.resolution**2)
        for step in range(32):
            share = share_of_cost(plan, step, frozen_blocks_run=frozen_blocks_run)
            assert share == pytest.approx(sum(costs[:step]) / sum(costs))
    tokens = GrowthPlan(2, 10, (Stage(0, (0, 1), 32, stride=16), Stage(5, (0, 1), 32, stride=8)))
    assert share_of_cost(tokens, 5, frozen_blocks_run=False) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--search", "fixed"], "cosine_by_cost"),
        (["--search", "one_shot"], "cosine"),
        (["--preset", "deit_small"], "cosine"),
        (["--search", "fixed", "--growth", "off"], "cosine"),
        (["--model", "x", "--num_stages", "1", "--min_depth", "1"], "cosine"),
        (["--search", "fixed", "--sched", "cosine"], "cosine"),
        (["--search", "one_shot", "--growth", "off", "--sched", "cosine_by_cost"], "cosine_by_cost"),
    ],
)
def test_the_rate_decays_by_cost_where_growing_stages_are_known(flags: list[str], expected: str) -> None:
    assert parse(flags).train.sched == expected


def test_a_decay_by_cost_needs_stages_that_are_known() -> None:
    with pytest.raises(ConfigError, match="--sched cosine_by_cost is not possible with --search one_shot.*fixed, or"):
        parse(["--sched", "cosine_by_cost", "--search", "one_shot"])
    flags = ["--model", "x"]
    assert Finetuning().parse(flags).train.sched == "cosine"
    flags += ["--sched", "cosine_by_cost"]
    assert Finetuning().parse(flags).train.sched == "cosine_by_cost"
    with pytest.raises(ConfigError, match="--search zero_shot.*Use --search none"):
        Finetuning().parse([*flags, "--search", "zero_shot"])


def test_epochs_of_warm_up_are_steps() -> None:
    args = TrainArguments(warmup_epochs=1.5, lr=1.0, warmup_lr=0.0, sched="constant")
    optimizer = make_optimizer(torch.nn.Linear(2, 2), args)
    schedule = make_schedule(optimizer, args, lambda step: step / 100, 10)
    assert schedule.lr_lambdas[0](15) == 1.0
    assert schedule.lr_lambdas[0](14) == pytest.approx(14 / 15)


def test_norms_biases_and_positions_are_not_decayed() -> None:
    model = build_model("transformers:vit", num_classes=3, image_size=8, hidden_size=16, num_hidden_layers=2,
                        num_attention_heads=2, patch_size=4)  # fmt: skip
    groups = make_optimizer(model, TrainArguments(weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, free = ([names[id(p)] for p in group["params"]] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert len(decayed) + len(free) == len(names)
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= set(free)


def test_every_preset_is_a_valid_command_line() -> None:
    for name in preset_names():
        args = parse(["--preset", name])
        assert args.growth.num_stages == 4
        assert args.growth.resolutions is not None
        assert args.growth.resolutions[-1] == args.model.img_size
        assert parse([*preset_words(name), "--seed", "3"]).train.seed == 3


def test_the_presets_hold_the_papers_settings() -> None:
    assert preset_names() == ["cpu", "deit_base", "deit_small", "deit_tiny", "volo_d1", "volo_d2"]
    volo = parse(["--preset=volo_d1"])
    assert volo.model.model == "timm:volo_d1_224"
    assert (volo.train.lr, volo.train.epochs, volo.train.warmup_epochs, volo.train.min_lr) == (1.6e-3, 100, 20, 1e-5)
    assert volo.growth.resolutions == (128, 160, 192, 224)
    assert (volo.growth.search, volo.growth.operator) == ("one_shot", "momentum")
    assert volo.growth.search_steps * 25 == 2  # epochs of the 25 of a stage
    assert (volo.augment.aa, volo.augment.reprob, volo.model.drop_path) == ("rand-m9-mstd0.5-inc1", 0.25, 0.1)


def test_flags_win_over_the_preset_and_cpu_is_the_default() -> None:
    assert parse([]) == parse(["--preset", "cpu"])
    assert (parse([]).growth.search, parse([]).growth.operator) == ("fixed", "stacking")
    assert parse(["--lr", "0.5", "--preset", "cpu"]).train.lr == 0.5
    assert parse(["--model", "transformers:deit"]).model.img_size == 224
    assert parse(["--aa", "None"]).augment.aa is None


BAD_VALUES_NAME = [
    (["--preset", "huge"], "--preset huge is not known.*cpu"),
    (["--lr", "0"], "--lr 0.0 .*above 0"),
    (["--mixup_prob", "1.5"], "--mixup_prob 1.5 .*0 to 1"),
    (["--drop_path", "1"], "--drop_path 1.0 .*below 1"),
    (["--mixup", "-1"], "--mixup -1.0 .*0 or more"),
    (["--scale", "0.9", "0.1"], "--scale 0.9 0.1"),
    (["--report_to", "paper"], "--report_to paper .*tensorboard"),
]


def test_bad_values_name_the_flag() -> None:
    for flags, message in BAD_VALUES_NAME:
        with pytest.raises(ConfigError, match=message):
            parse(flags)
