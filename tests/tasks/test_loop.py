"""The trainer in this process, against the literal Diffusers loop."""

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

from autoprog_diffusion.data.memory_format import in_channels_last
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.build import make_loader
from autoprog_diffusion.training.metrics import saving
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import parse
from .training import FLAGS, STEPS, NewTrainer, same, weights


def plain_diffusers_loop(
    model: Path, data: datasets.Dataset, args: Arguments, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Diffusers' train_text_to_image.py, without a line of growth."""
    pipeline = load_pipeline(str(model))
    unet, vae, text_encoder = pipeline.unet, pipeline.vae.eval(), pipeline.text_encoder.eval()
    vae.requires_grad_(False)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    captions = sorted(set(data["text"]))
    ids = pipeline.tokenizer(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = text_encoder(ids.input_ids)[0]

    set_seed(args.train.seed, device_specific=True)
    ema = EMAModel(unet.parameters(), decay=args.train.ema_decay)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.train.learning_rate, weight_decay=1e-2, fused=True)
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
                with torch.no_grad(), in_channels_last(vae) as memory_format:
                    pixels = batch["pixel_values"].contiguous(memory_format=memory_format)
                    posterior = vae.encode(pixels).latent_dist
                # Noise is drawn in the order of the memory, which a cache would give.
                mean = posterior.mean.contiguous()
                latents = mean + posterior.std.contiguous() * torch.randn_like(mean)
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
    flags = ("--max_train_steps", 8, "--train_batch_size", 8, "--resolutions", 0.5, 0.5, 1, 1)
    trainer = new_trainer(*flags, "--direction", "unfreeze")
    seen = []
    trainer.train(lambda step: seen.append((step, trainer.growth.stage)))
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 3)]
    assert trainer.metrics.rows["stage"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert trainer.metrics.rows["resolution"] == [32, 32, 32, 32, 64, 64, 64, 64]
    trainable = trainer.metrics.rows["trainable"]
    assert trainable == sorted(trainable)
    assert trainable[-1] == 1.0
    flops = [row.flops for row in trainer.metrics.summaries()]
    assert flops == sorted(flops)
    assert flops[2] > 3 * flops[1]  # four times the pixels


def test_a_run_freezes_by_default_and_its_optimizer_lets_go(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 8, "--train_batch_size", 8)
    trainer.train()
    trainable = trainer.metrics.rows["trainable"]
    assert trainable[0] == 1.0
    assert trainable == sorted(trainable, reverse=True)
    flops = [row.flops for row in trainer.metrics.summaries()]
    assert flops == sorted(flops, reverse=True)
    held = {id(parameter) for parameter in trainer.optimizer.state}
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    assert frozen
    assert not [parameter for parameter in frozen if id(parameter) in held]
    assert saving(trainer.metrics.summaries(), trainer.growth.plan.num_blocks)["flops"] > 1


@pytest.mark.parametrize("foreach", [(), ("--foreach_ema",)])
def test_what_has_frozen_keeps_its_average(new_trainer: NewTrainer, foreach: tuple[str, ...]) -> None:
    flags = ("--max_train_steps", 8, "--train_batch_size", 8, "--learning_rate", 1e-2, "--use_ema", "--ema_decay", 0.9)
    trainer = new_trainer(*flags, *foreach)
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in trainer._trained]
    literal = EMAModel(twins, decay=0.9)

    def follow(step: int) -> None:
        for twin, parameter in zip(twins, trainer._trained, strict=True):
            twin.data.copy_(parameter)
        literal.step(twins)

    trainer.train(follow)
    behind = 0
    for ours, theirs, parameter in zip(
        trainer.ema.shadow_params, literal.shadow_params, trainer._trained, strict=True
    ):
        torch.testing.assert_close(ours, theirs)
        behind += not parameter.requires_grad and not torch.equal(ours, parameter)
    assert behind > 10  # raw weights instead of the average would be equal


def test_counting_flops_does_not_change_the_gradient(new_trainer: NewTrainer) -> None:
    """`counted_flops` wraps the first batch of every stage, on the main process only."""
    results = []
    counted: dict[str, int] = {}
    for _ in range(2):  # the second time as after a resume: nothing left to count
        trainer = new_trainer("--max_train_steps", 4, "--train_batch_size", 4)
        trainer.metrics.flops |= counted
        trainer.train()
        results.append(weights(trainer))
        counted = trainer.metrics.flops
    assert len(counted) == 4
    assert same(*results)


def test_epochs_count_where_steps_are_not_given(new_trainer: NewTrainer) -> None:
    flags = ("--growth", "off", "--num_train_epochs", 3, "--train_batch_size", 5, "--gradient_accumulation_steps", 2)
    assert new_trainer(*flags).max_steps == 3 * (24 // 5 // 2)


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
