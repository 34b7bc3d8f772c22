"""Fine-tune a Stable-Diffusion-class text-to-image pipeline progressively.

    accelerate launch recipes/finetune_sd.py --output_dir out

fine-tunes the small emoji pipeline beside this file from Twemoji, the style it was pretrained on, to OpenMoji, a style
it has never seen: under 10 minutes on 2 CPU cores. Your own model and data:

    accelerate launch recipes/finetune_sd.py --output_dir out \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir my_images \
        --resolution 512 --train_batch_size 4 --max_train_steps 10000 --mixed_precision bf16 --use_ema

`--help` lists every flag; they carry the names of Diffusers' train_text_to_image.py. `--growth off` is plain full
fine-tuning in the same loop. Results: a plain Diffusers pipeline in the output folder, before_after.png, timeline.png,
growth.json (plan, measurements) and one printed table.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from accelerate.utils import set_seed

from autoprog_diffusion import GrowthError, GrowthScheduler
from autoprog_diffusion.finetune.arguments import Arguments
from autoprog_diffusion.finetune.emoji import emoji_dataset
from autoprog_diffusion.finetune.images import DEFAULT_STYLE, check_batch, load_captioned_images
from autoprog_diffusion.finetune.loop import Trainer
from autoprog_diffusion.finetune.output import RUN_FILE, check_output_dir, write_text_atomically
from autoprog_diffusion.finetune.report import write_report
from autoprog_diffusion.finetune.samples import load_images, sample_images, save_grid, save_images
from autoprog_diffusion.finetune.setup import growth_config, make_accelerator, make_loader
from autoprog_diffusion.finetune.stable_diffusion import TextToImage, check_sizes, load_pipeline


if TYPE_CHECKING:
    import datasets

DEFAULT_MODEL = Path(__file__).parent / "assets" / "tiny_sd"
# Of the default model and data; any flag on the command line wins.
DEFAULT_FLAGS = {"learning_rate": "5e-4", "lr_scheduler": "cosine", "lr_warmup_steps": "50", "max_train_steps": "1200",
                 "use_ema": None, "ema_decay": "0.99"}  # fmt: skip
# Held-out emoji: the fine-tuning never sees their OpenMoji pictures.
DEFAULT_PROMPTS = 12


def main(argv: list[str]) -> None:
    """Parse the flags, train, and write the results."""
    args = tyro.cli(Arguments, args=with_defaults(argv), description=__doc__)
    output, clock = Path(args.output.output_dir), {"start": time.perf_counter()}
    accelerator = make_accelerator(args)
    if accelerator.is_main_process:
        resume = args.output.resume_from_checkpoint is not None
        check_output_dir(output, resume=resume, overwrite=args.output.overwrite_output_dir)
    accelerator.wait_for_everyone()

    pipeline = load_pipeline(args.model.pretrained_model_name_or_path or str(DEFAULT_MODEL), args)
    resolution = args.data.resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    config, plan = growth_config(args, multiple=pipeline.vae_scale_factor)
    check_sizes(pipeline, resolution)
    data = load_captioned_images(args.data, resolution, args.model.cache_dir)
    check_batch(len(data), args.train.train_batch_size * accelerator.num_processes)
    if args.train.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()

    set_seed(args.train.seed, device_specific=True)
    growth = GrowthScheduler(pipeline.unet, config, accelerator)
    task = TextToImage(pipeline, data, args, accelerator, resolution)
    trainer = Trainer(pipeline.unet, growth, plan, task, make_loader(data, args, resolution), args, accelerator)
    if args.output.resume_from_checkpoint and not trainer.resume(args.output.resume_from_checkpoint):
        accelerator.print("no complete checkpoint yet: starting from the beginning.")
    if accelerator.is_main_process:
        settings = {key: str(value) for key, value in config.to_dict().items()}  # trackers take no lists
        accelerator.init_trackers(args.output.tracker_project_name, config=settings)
        growth.plan.save(output / "growth_plan.json")
        write_text_atomically(output / RUN_FILE, json.dumps(dataclasses.asdict(args), indent=2) + "\n")

    prompts = args.output.validation_prompts or default_prompts(args, data)
    guidance = args.output.guidance_scale or (7.5 if args.model.pretrained_model_name_or_path else 3.0)

    def draw() -> list:
        return sample_images(
            pipeline, prompts, size=resolution, steps=args.output.num_inference_steps, guidance=guidance,
            seed=args.train.seed,
        )  # fmt: skip

    before = output / "before"
    if accelerator.is_main_process and trainer.step == 0:
        save_images(before, draw())
    clock["ready"] = time.perf_counter()

    def validate(step: int) -> None:
        every = args.output.validation_steps
        if every and step % every == 0 and accelerator.is_main_process:
            save_grid(output / f"validation-{step}.png", prompts, [(f"step {step}", draw())])

    trainer.train(validate)
    clock["trained"] = time.perf_counter()
    trainer.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        pipeline.save_pretrained(output)
        old = load_images(before, len(prompts))  # none where a resumed run was given more prompts
        rows = [*([("before", old)] if old else []), ("after", draw()), *reference_row(args, prompts, resolution)]
        save_grid(output / "before_after.png", prompts, rows)
        clock["saved"] = time.perf_counter()
        names = ("getting ready", "training", "saving and pictures")
        times = list(clock.values())
        write_report(output, growth, trainer.log, dict(zip(names, (b - a for a, b in zip(times, times[1:])))))
        print(f"the fine-tuned pipeline, its pictures and growth.json are in {output}/")
    accelerator.end_training()


def with_defaults(argv: list[str]) -> list[str]:
    """The flags, preceded by the default model's where no model is named: the last of a repeated flag wins."""
    named = any(flag.split("=")[0].replace("-", "_") == "__pretrained_model_name_or_path" for flag in argv)
    defaults = [word for flag, value in DEFAULT_FLAGS.items() for word in (f"--{flag}", value) if word is not None]
    return argv if named else [*defaults, *argv]


def is_default_data(args: Arguments) -> bool:
    """Whether the run trains on the emoji that come with the package."""
    return not args.data.train_data_dir and not args.data.dataset_name


def default_prompts(args: Arguments, data: datasets.Dataset) -> tuple[str, ...]:
    """Captions to draw: held-out emoji, evenly spread over the categories, or the first captions of other data."""
    if not is_default_data(args):
        return tuple(data[: DEFAULT_PROMPTS // 2]["text"])
    held_out = emoji_dataset(DEFAULT_STYLE, size=8, split="held_out")
    captions = [text for _, text in sorted(zip(held_out["category"], held_out["text"]))]
    return tuple(captions[index * len(captions) // DEFAULT_PROMPTS] for index in range(DEFAULT_PROMPTS))


def reference_row(args: Arguments, prompts: tuple[str, ...], size: int) -> list[tuple[str, list]]:
    """The real pictures of the prompts in the new style, where they are known."""
    if not is_default_data(args):
        return []
    emoji = emoji_dataset(DEFAULT_STYLE, size=size)
    known = dict(zip(emoji["text"], emoji["image"]))
    return [("real", [known[prompt] for prompt in prompts])] if all(prompt in known for prompt in prompts) else []


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GrowthError as error:
        sys.exit(f"error: {error}")
