"""The trainer in this process: against the literal Diffusers loop, and where it must stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from autoprog_diffusion.finetune.arguments import Arguments
from autoprog_diffusion.finetune.loop import Trainer, TrainingError
from autoprog_diffusion.finetune.setup import growth_config, make_loader
from autoprog_diffusion.finetune.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.growth import GrowthError, GrowthScheduler
from autoprog_diffusion.growth.errors import ConfigError, PlanError, StateError

from .tiny import parse


NewTrainer = Callable[..., Trainer]
STEPS = 5
# Crosses an epoch: 24 images are 6 batches of 4, and 5 steps of 2 are 10.
FLAGS = (
    "--max_train_steps", STEPS, "--train_batch_size", 4, "--gradient_accumulation_steps", 2,
    "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--learning_rate", 1e-3, "--max_grad_norm", 0.5,
    "--random_flip", "--no-cache_latents",
)  # fmt: skip


@pytest.fixture
def new_trainer(
    pipeline_dir: Path,
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTrainer:
    def make(*flags: object) -> Trainer:
        args = parse("--output_dir", tmp_path / "out", "--search", "none", *flags)
        accelerator = new_accelerator(args)
        pipeline = load_pipeline(str(pipeline_dir), args)
        set_seed(args.train.seed, device_specific=True)
        config, plan = growth_config(args, 4)
        growth = GrowthScheduler(pipeline.unet, config, accelerator)
        task = TextToImage(pipeline, data, args, accelerator, 64)
        return Trainer(pipeline.unet, growth, plan, task, make_loader(data, args, 64), args, accelerator)

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.bare.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def plain_diffusers_loop(
    model: Path, data: datasets.Dataset, args: Arguments, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Diffusers' train_text_to_image.py, without a line of growth."""
    pipeline = load_pipeline(str(model), args)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae.eval(), pipeline.text_encoder.eval()
    vae.requires_grad_(False)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    captions = sorted(set(data["text"]))
    ids = pipeline.tokenizer(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = text_encoder(ids.input_ids)[0]

    set_seed(args.train.seed, device_specific=True)
    ema = EMAModel(unet.parameters(), decay=args.train.ema_decay)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.train.learning_rate, weight_decay=1e-2)
    schedule = get_scheduler(
        "cosine", optimizer, num_warmup_steps=args.train.lr_warmup_steps, num_training_steps=STEPS
    )
    loader = make_loader(data, args, 64)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    unet.train()
    step = epoch = 0
    while step < STEPS:
        loader.set_epoch(epoch)
        loader.dataset.epoch = epoch
        for batch in loader:
            with accelerator.accumulate(unet):
                with torch.no_grad():
                    posterior = vae.encode(batch["pixel_values"]).latent_dist
                latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
                latents = latents * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, 1000, (len(latents),))
                noisy = noise_scheduler.add_noise(latents, noise, timesteps)
                rows = [captions.index(data[index]["text"]) for index in batch["index"].tolist()]
                target = noise_scheduler.get_velocity(latents, noise, timesteps)
                prediction = unet(noisy, timesteps, embeddings[rows], return_dict=False)[0]
                accelerator.backward(F.mse_loss(prediction.float(), target.float(), reduction="mean"))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(unet.parameters(), args.train.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(unet.parameters())
                step += 1
                if step == STEPS:
                    break
        epoch += 1
    if args.train.use_ema:
        ema.copy_to(unet.parameters())
    return unet.state_dict()


@pytest.mark.parametrize("ema", [(), ("--use_ema", "--ema_decay", 0.5)], ids=["raw", "ema"])
def test_growth_off_is_the_plain_loop_bit_for_bit(
    new_trainer: NewTrainer,
    new_accelerator: Callable[[Arguments], Accelerator],
    pipeline_dir: Path,
    data: datasets.Dataset,
    tmp_path: Path,
    ema: tuple,
) -> None:
    trainer = new_trainer(*FLAGS, *ema, "--growth", "off")
    start = weights(trainer)
    trainer.train()
    trainer.finish()
    args = parse("--output_dir", tmp_path / "plain", *FLAGS, *ema)
    plain = plain_diffusers_loop(pipeline_dir, data, args, new_accelerator(args))
    assert not same(start, weights(trainer))
    assert same(plain, weights(trainer))


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_the_learning_rate_warms_up_and_ends_as_its_name_says(new_trainer: NewTrainer, name: str) -> None:
    flags = ("--lr_scheduler", name, "--lr_warmup_steps", 2, "--learning_rate", 1.0, "--adam_weight_decay", 0)
    trainer = new_trainer("--max_train_steps", 6, "--train_batch_size", 4, "--growth", "off", *flags)
    rates = [trainer.lr_scheduler.get_last_lr()[0]]
    for _ in range(6):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
    assert rates == pytest.approx(
        {
            "constant": [1.0] * 7,
            "constant_with_warmup": [0, 0.5, 1, 1, 1, 1, 1],
            "linear": [0, 0.5, 1, 0.75, 0.5, 0.25, 0],
            "cosine": [0, 0.5] + [0.5 + 0.5 * math.cos(math.pi * step / 4) for step in range(5)],
        }[name]
    )


def test_growth_off_is_one_full_stage_without_an_embedding(new_trainer: NewTrainer) -> None:
    results = []
    for flags in (("--growth", "off"), ("--num_stages", 1, "--min_trainable", 1.0, "--no-stage_embedding")):
        trainer = new_trainer("--max_train_steps", 2, "--train_batch_size", 4, *flags)
        trainer.train()
        trainer.finish()
        results.append(weights(trainer))
    assert same(*results)


def test_a_run_goes_through_its_stages(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 8, "--train_batch_size", 8, "--resolutions", 0.5, 0.5, 1, 1)
    seen = []
    trainer.train(lambda step: seen.append((step, trainer.growth.stage)))
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 3)]
    assert trainer.log.rows["stage"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert trainer.log.rows["resolution"] == [32, 32, 32, 32, 64, 64, 64, 64]
    trainable = trainer.log.rows["trainable"]
    assert trainable == sorted(trainable)
    assert trainable[-1] == 1.0
    flops = [trainer.log.flops[stage] for stage in range(4)]
    assert flops == sorted(flops)
    assert flops[2] > 3 * flops[1]  # four times the pixels


def test_counting_flops_does_not_change_the_gradient(new_trainer: NewTrainer) -> None:
    """`counted_flops` wraps the first batch of every stage, on the main process only."""
    results = []
    for counted in ({}, dict.fromkeys(range(4), 1)):  # the second as after a resume: nothing left to count
        trainer = new_trainer("--max_train_steps", 4, "--train_batch_size", 4)
        trainer.log.flops |= counted
        trainer.train()
        results.append(weights(trainer))
    assert same(*results)


def test_epochs_count_where_steps_are_not_given(new_trainer: NewTrainer) -> None:
    flags = ("--growth", "off", "--num_train_epochs", 3, "--train_batch_size", 5, "--gradient_accumulation_steps", 2)
    assert new_trainer(*flags).max_steps == 3 * (24 // 5 // 2)


@pytest.mark.parametrize("wanted", ["latest", "checkpoint-2"])
def test_a_resumed_run_ends_bit_identical(new_trainer: NewTrainer, tmp_path: Path, wanted: str) -> None:
    flags = (*FLAGS, "--use_ema", "--ema_decay", 0.5, "--checkpointing_steps", 2, "--resolutions", 0.5, 0.5, 1, 1)
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    resumed = new_trainer(*flags)
    assert resumed.resume(wanted)
    assert resumed.step == {"latest": 4, "checkpoint-2": 2}[wanted]
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.log.rows["loss"] == whole.log.rows["loss"]


def test_a_run_resumed_within_a_search_ends_bit_identical(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 20, "--train_batch_size", 4, "--checkpointing_steps", 7, "--search", "zero_shot")
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    for wanted in ("checkpoint-7", "checkpoint-14"):
        resumed = new_trainer(*flags)
        assert resumed.resume(wanted)
        resumed.train()
        resumed.finish()
        assert resumed.growth.plan == whole.growth.plan
        assert same(weights(whole), weights(resumed))


def test_a_finished_run_can_be_resumed_and_does_nothing(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 4, "--train_batch_size", 4, "--checkpointing_steps", 4)
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    again = new_trainer(*flags)
    assert again.resume("latest")
    again.train(pytest.fail)
    again.finish()
    assert same(weights(whole), weights(again))


def test_there_is_nothing_to_resume_at_first(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS)
    assert trainer.resume("latest") is False
    assert trainer.step == 0
    with pytest.raises(StateError, match=r"checkpoint-7 is not a complete checkpoint"):
        trainer.resume("checkpoint-7")


def test_a_checkpoint_of_another_plan_is_refused(new_trainer: NewTrainer) -> None:
    flags = ("--train_batch_size", 4, "--checkpointing_steps", 2)
    new_trainer("--max_train_steps", 4, *flags).train()
    with pytest.raises(StateError, match="num_training_steps was 4, now 8"):
        new_trainer("--max_train_steps", 8, *flags).resume("latest")


def test_a_run_shorter_than_its_stages_is_refused(new_trainer: NewTrainer) -> None:
    with pytest.raises(PlanError, match="num_training_steps=3 is shorter than num_stages=4"):
        new_trainer("--max_train_steps", 3, "--train_batch_size", 4)


def test_a_plan_of_other_steps_is_refused(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer("--max_train_steps", 4, "--train_batch_size", 4)
    trainer.growth.plan.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=r"the plan is for 4 steps, the run has 8: use plan\.rescaled\(8\)"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--growth_plan", tmp_path / "plan.json")


def test_a_later_stage_s_resolution_is_refused_before_any_training(new_trainer: NewTrainer) -> None:
    """0.65 of 64 pixels is 42, which the VAE does not divide; stage 0 would train well."""
    steps = []
    with pytest.raises(ConfigError, match="0.65"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--resolutions", 0.5, 0.65, 1, 1).train(
            steps.append
        )
    assert steps == []


def test_a_resolution_above_the_data_is_refused_before_any_training(new_trainer: NewTrainer) -> None:
    steps = []
    with pytest.raises(ConfigError, match="larger than the images"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--resolutions", 32, 64, 64, 128).train(
            steps.append
        )
    assert steps == []


def test_a_loss_that_is_not_finite_stops_the_run_with_the_newest_checkpoint(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--checkpointing_steps", 1)

    def poison(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                trainer.bare.conv_out.bias.fill_(float("nan"))

    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 2, stage 2: lower --learning_rate.*checkpoint-2"
    ):
        trainer.train(poison)


@pytest.mark.parametrize("flag", ["--offload_ema", "--foreach_ema"])
def test_variants_of_the_average_train(new_trainer: NewTrainer, flag: str) -> None:
    flags = ("--max_train_steps", 4, "--train_batch_size", 4, "--use_ema", "--ema_decay", 0.5)
    results = []
    for extra in ((), (flag,)):
        trainer = new_trainer(*flags, *extra)
        trainer.train()
        trainer.finish()
        results.append(weights(trainer))
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr_scheduler", "zigzag"),
        ("--train_batch_size", 0),
        ("--gradient_accumulation_steps", 0),
        ("--checkpointing_steps", 0),
        ("--max_train_steps", -1),
    ],
    ids=lambda flags: flags[0],
)
def test_numbers_and_names_that_are_not_allowed_are_refused_at_once(new_trainer: NewTrainer, flags: tuple) -> None:
    steps = []
    with pytest.raises(GrowthError, match=str(flags[1])):
        new_trainer("--max_train_steps", 4, "--train_batch_size", 4, *flags).train(steps.append)
    assert steps == []
