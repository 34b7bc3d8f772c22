"""The pretraining loop: it learns, grows as planned, counts, and stops where it must."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.training.checkpoints import TrainingError
from autoprog_diffusion.training.metrics import saving
from autoprog_diffusion.vit.drop_path import DropPath
from autoprog_diffusion.vit.models import build_model, logits
from autoprog_diffusion.vit.training.augment import normalised

from .pretraining import new_trainer_in, same, weights


pytestmark = pytest.mark.smoke


LEARNS = ("--max_train_steps", "30", "--lr", "1e-2", "--mixup", "0", "--aa", "None", "--hflip", "0", "--crop", "none")
LEARNS += ("--reprob", "0", "--drop_path", "0", "--cutmix", "0", "--smoothing", "0")


@pytest.mark.parametrize("growth", ["on", "off"])
def test_a_tiny_model_learns(tmp_path: Path, growth: str) -> None:
    trainer = new_trainer_in(tmp_path)(*LEARNS, "--growth", growth)
    before = trainer.evaluate(averaged=False)
    trainer.train()
    after = trainer.evaluate(averaged=True)
    assert before["accuracy"] < 0.7
    assert after["accuracy"] > 0.9
    assert after["loss"] < 0.5 < before["loss"]


def test_depth_resolution_and_regularisation_follow_the_stages(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)("--drop_path", "0.3", "--drop_path_scale", "0")
    rates: list[float] = []

    def last_rate(step: int) -> None:
        paths = [module for module in trainer.bare.modules() if isinstance(module, DropPath)]
        rates.append(max((path.rate for path in paths), default=0.0))

    trainer.train(last_rate)
    rows = trainer.metrics.rows
    assert list(zip(rows["stage"], rows["blocks"], rows["resolution"])) == [(0, 2, 8)] * 6 + [(1, 4, 16)] * 6
    assert rates == [0.0] * 5 + [pytest.approx(0.3)] * 7  # entered at the end of step 6
    assert trainer.data.train.size == 16
    trainer.finish()
    assert sum("forward" in vars(module) for module in trainer.bare.modules()) == 0


def test_a_rate_that_decays_by_cost_is_still_high_when_the_model_becomes_whole(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)("--sched", "cosine_by_cost", "--min_lr", "0")
    rates: list[float] = []
    trainer.train(lambda step: rates.append(trainer.lr_scheduler.get_last_lr()[0]))
    # Two of four blocks at half the side cost an eighth of the whole model.
    costs = [1 / 8] * 6 + [1.0] * 6
    expected = [3e-3 * (1 + math.cos(math.pi * sum(costs[:step]) / sum(costs))) / 2 for step in range(2, 13)]
    assert rates[1:] == pytest.approx(expected, abs=1e-12)
    assert rates[5] > 0.95 * 3e-3


def test_a_search_trains_candidates_at_full_strength(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)("--search", "one_shot", "--num_stages", "2")
    sizes: list[int] = []
    trainer.train(lambda step: sizes.append(trainer.data.train.size))
    rows = trainer.metrics.rows
    assert rows["searching"] == [1.0] * 3 + [0.0] * 9
    assert sizes[:2] == [16, 16]  # a supernet draws from full-size images
    (decision,) = trainer.growth.decisions
    assert rows["blocks"][3:6] == [decision["choice"]["depth"]] * 3
    assert rows["resolution"][3:6] == [decision["choice"]["resolution"]] * 3
    assert len(trainer.data.train) + 16 == 54


def test_flops_are_those_of_the_network_that_trained(tmp_path: Path) -> None:
    sides = {(): (8, 16), ("--resolutions", "16", "16"): (16, 16)}
    for flags, (small, large) in sides.items():
        trainer = new_trainer_in(tmp_path)(*flags)
        trainer.train()
        flops = dict(zip(trainer.metrics.rows["blocks"], trainer.metrics.rows["flops"]))
        for depth, side in ((2, small), (4, large)):
            model = build_model("transformers:vit", num_classes=3, image_size=side, num_hidden_layers=depth,
                                hidden_size=16, num_attention_heads=2, patch_size=4)  # fmt: skip
            with flop_counter() as counter:
                logits(model, torch.zeros(8, 3, side, side)).sum().backward()
            # The augmentation's own small matrices are in it.
            assert flops[depth] == pytest.approx(counter.get_total_flops(), rel=1e-3)
        first, last = trainer.metrics.summaries()
        assert saving([first, last], 4)["flops"] == pytest.approx(2 * last.flops / (first.flops + last.flops))


def test_counting_flops_changes_nothing(tmp_path: Path) -> None:
    runs = []
    counted: dict[str, int] = {}
    for _ in range(2):  # the second time as after a resume: nothing left to count
        trainer = new_trainer_in(tmp_path)()
        trainer.metrics.flops |= counted
        trainer.train()
        runs.append(weights(trainer))
        counted = trainer.metrics.flops
    assert len(counted) == 2
    assert same(*runs)


def test_validation_counts_every_image_once_and_moves_nothing(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)("--growth", "off")
    state, before = torch.get_rng_state(), weights(trainer)
    found = trainer.evaluate(averaged=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before, weights(trainer))
    val, trainer.bare.training = trainer.data.val, False
    with torch.no_grad():
        output = trainer.bare.eval()(pixel_values=normalised(val.images.float() / 255)).logits  # type: ignore[union-attr]
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == val.labels).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(output, val.labels)), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_and_names_the_newest_checkpoint(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)("--checkpointing_steps", "4")

    def poison(step: int) -> None:
        if step == 5:
            with torch.no_grad():
                trainer.bare.classifier.weight.fill_(math.nan)  # type: ignore[union-attr]

    with pytest.raises(TrainingError, match=r"loss is nan at step 5.*checkpoint-4"):
        trainer.train(poison)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--batch_size 64 on 1 processes is more than the 54"):
        new_trainer_in(tmp_path)("--batch_size", "64")


def test_channels_last_gives_the_same_result(tmp_path: Path) -> None:
    losses = []
    for flag in ("--channels_last", "--no-channels_last"):
        trainer = new_trainer_in(tmp_path)(flag, "--max_train_steps", "4", "--warmup_steps", "0")
        trainer.train()
        losses.append(trainer.metrics.rows["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_mixed_precision_trains_and_evaluates_the_average(tmp_path: Path) -> None:
    trainer = new_trainer_in(tmp_path)(*LEARNS, "--mixed_precision", "bf16")
    before = trainer.evaluate(averaged=True)
    trainer.train()
    assert {parameter.dtype for parameter in trainer.bare.parameters()} == {torch.float32}
    assert trainer.evaluate(averaged=True)["loss"] < before["loss"] - 0.3
    with trainer.averaged():
        expected = trainer.evaluate(averaged=False)
    assert trainer.evaluate(averaged=True) == expected
    assert trainer.evaluate(averaged=False)["loss"] != expected["loss"]
