"""Teach a text-to-image pipeline one subject from a few pictures (DreamBooth), progressively.

    accelerate launch recipes/dreambooth.py --output_dir out

teaches the small emoji pipeline beside this file a blue cat from six of its faces, while its other cats stay as they
are: under 5 minutes on 2 CPU cores. Your own model and subject:

    accelerate launch recipes/dreambooth.py --output_dir out \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --resolution 512 \
        --instance_data_dir my_dog --instance_prompt "a photo of sks dog" \
        --with_prior_preservation --class_prompt "a photo of dog" --num_class_images 200 \
        --train_batch_size 1 --learning_rate 5e-6 --max_train_steps 800 --mixed_precision bf16

Stable Diffusion 1.x and 2.x, SDXL, and every family of finetune_flow.py but PixArt-Sigma. `--rank 16` trains a LoRA of
that rank instead of the whole denoiser, with --learning_rate 1e-4 or so. `--help` lists every flag; they carry the
names of Diffusers' train_dreambooth.py. The model draws missing pictures of the class before training; latents and
text are cached. Results: a plain Diffusers pipeline in the output folder (or pytorch_lora_weights.safetensors),
before_after.png, timeline.png, growth.json and one printed table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.tasks.any_pipeline_recipe import AnyPipelineRecipe
from autoprog_diffusion.tasks.arguments import DreamboothArguments, hub_options, noise_settings
from autoprog_diffusion.tasks.dreambooth import (
    Dreambooth,
    SubjectSettings,
    check_subject,
    default_subject,
    draw_class_images,
    images_of,
    list_images,
    pair_up,
)
from autoprog_diffusion.tasks.dreambooth_tasks import DreamboothFlow, dreambooth_task
from autoprog_diffusion.tasks.lora import check_no_lora, load_any
from autoprog_diffusion.training.build import make_loader
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main
from autoprog_diffusion.training.samples import Row


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.data.latents import Latents


class FinetuneSubject(AnyPipelineRecipe[DreamboothArguments]):
    """Fine-tuning on one subject: of the whole denoiser, or of adapters with --rank."""

    name = "dreambooth"
    default_model = Path(__file__).parent / "assets" / "tiny_sd"
    shares = False  # pictures of a subject are few, and all have one caption
    defaults = DreamboothArguments(train=TrainArguments(train_batch_size=4))
    model_defaults = replace(
        defaults,
        train=TrainArguments(
            train_batch_size=8,
            learning_rate=2e-4,
            lr_warmup_steps=20,
            max_train_steps=240,
        ),
        subject=SubjectSettings(
            instance_prompt="zwx cat face",
            class_prompt="cat face",
            with_prior_preservation=True,
            num_class_images=32,
        ),
    )

    def load(self, args: DreamboothArguments) -> Any:
        if args.data.train_data_dir or args.data.dataset_name:
            raise ConfigError("--train_data_dir and --dataset_name are for other recipes: give --instance_data_dir.")
        check_subject(args.subject)
        pipeline = load_any(self.model_name(args), **hub_options(args))
        self.adapts = args.lora.rank != 0
        if self.adapts:
            self.add_adapters(pipeline, args, args.lora)
        else:
            check_no_lora(args.lora)
        return pipeline

    def data(
        self, args: DreamboothArguments, pipeline: Any, resolution: int, accelerator: Accelerator
    ) -> datasets.Dataset:
        """Pictures of the subject, then of the class."""
        from datasets import concatenate_datasets

        subject = args.subject
        report = self.data_report or DataReport()
        reading = report.add("trained on", subject.instance_data_dir or "the default subject")
        if subject.instance_data_dir:
            files = list_images(subject.instance_data_dir, "instance_data_dir", reading)
        else:
            files = default_subject(Path(args.output.output_dir) / "instance_images", resolution, accelerator)
            reading.used = len(files)
        instances = images_of(files, subject.instance_prompt or "", subject=True)
        if not subject.with_prior_preservation:
            return instances
        folder = Path(os.path.expanduser(subject.class_data_dir or Path(args.output.output_dir) / "class_images"))
        files = draw_class_images(
            pipeline,
            folder,
            accelerator,
            subject,
            size=resolution,
            steps=args.output.num_inference_steps,
            guidance=self.guidance(pipeline, args),
            seed=args.train.seed,
            max_sequence_length=args.flow.max_sequence_length,
            reading=report.add("trained on", str(folder)),
        )
        return concatenate_datasets([instances, images_of(files, subject.class_prompt or "", subject=False)])

    def validation(self, args: DreamboothArguments, pipeline: Any, resolution: int) -> datasets.Dataset | None:
        """Further pictures of the subject, if a folder of them is given."""
        folder = args.evaluation.validation_data_dir
        if folder is None:
            return None
        return images_of(list_images(folder, "validation_data_dir"), args.subject.instance_prompt or "")

    def loader(self, data: datasets.Dataset, args: DreamboothArguments, resolution: int) -> DataLoader:
        instances = sum(data["subject"])
        classes = len(data) - instances
        if not instances or (args.subject.with_prior_preservation and not classes):
            raise DataError("no picture of the subject, or none of its class, can be decoded.")
        if self.plan is not None and classes:
            raise ConfigError(
                "--buckets is not possible with --with_prior_preservation: a picture of the subject and one of its "
                "class train in one batch, and have one size. Remove one of the flags."
            )
        pairs = pair_up(instances, classes) if classes else None
        return make_loader(data, args, resolution, pairs, plan=self.plan, processes=self.processes)

    def task(self, pipeline: Any, latents: Latents, args: DreamboothArguments) -> Dreambooth | DreamboothFlow:
        self._data = latents.data
        return dreambooth_task(
            pipeline,
            latents,
            flow=args.flow,
            noise=noise_settings(args),
            prior_loss_weight=args.subject.prior_loss_weight,
        )

    def titles(self, args: DreamboothArguments, data: datasets.Dataset) -> tuple[str, ...]:
        """The subject, and its class that must stay as it is."""
        subject = args.subject.instance_prompt or ""
        classes = args.subject.class_prompt
        if args.output.validation_prompts:
            return args.output.validation_prompts
        if args.subject.instance_data_dir:
            return (subject,) * 4 + ((classes,) * 2 if classes else ())
        joy = " with tears of joy"  # none of the pictures shows it
        return (subject, subject, subject + joy, "cat face", "cat face" + joy, "dog face")

    def references(self, args: DreamboothArguments, titles: Sequence[str], size: int) -> list[Row]:
        """Pictures of the subject that it was taught from."""
        rows = [row for row, subject in enumerate(self._data["subject"]) if subject]
        images = [read_image(self._data, row) for row in rows[: len(titles)]]
        return [("taught", [image.resize((size, size)) for image in images])]


if __name__ == "__main__":
    main(FinetuneSubject(), sys.argv[1:], __doc__)
