"""Cases of the time-to-quality benchmark: a pretrained model, a new domain, and what is held out of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from common import ASSETS, ROOT
from PIL import Image
from torch import nn

from autoprog_diffusion.data.emoji import emoji_classes, emoji_dataset
from autoprog_diffusion.data.labelled import class_names
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.tasks.arguments import (
    ClassConditionalArguments,
    FlowMatchingArguments,
    noise_settings,
)
from autoprog_diffusion.tasks.class_conditional import ClassConditional, ClassSettings, draw_classes, set_classes
from autoprog_diffusion.tasks.flow_matching import FlowMatching, FlowSettings, load_flow
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.tasks.tiny_pipelines import load_tiny_dit, load_tiny_flow
from autoprog_diffusion.training.build import make_accelerator, make_latents
from autoprog_diffusion.training.diffusion import Task
from autoprog_diffusion.training.held_out import FullSize
from autoprog_diffusion.training.recipe_arguments import Arguments, PictureArguments, TrainArguments
from autoprog_diffusion.training.samples import draw_prompts, sample_images


SIZE = 64
PRETRAINED = ROOT / "runs" / "larger"  # by pretrain_larger.py
PICTURE_STEPS, GUIDANCE = 8, 3.0


class CaseError(GrowthError):
    """A case cannot be run here."""


@dataclass
class Subject:
    """One freshly loaded model with its data, ready to be trained.

    Attributes:
        pipeline: The Diffusers pipeline.
        denoiser: Its model that trains.
        task: Training batches to losses.
        held: The same on held-out images, without dropped conditions.
        count: Training images.
        held_count: Held-out images.
        multiple: What a side of the images must be a multiple of.
        always: Words in names of parameters that every method trains: rows of new classes.
        draw: Pictures of all held-out prompts (or of the classes in turn), from a first seed on.
        wanted: For every drawn picture the row of `real` (or the class) that it should look like.
        real: Real pictures of the new domain; the first `held_count` are the held-out ones.
        labels: Class of every real picture; empty where prompts are captions.
    """

    pipeline: Any
    denoiser: nn.Module
    task: Task
    held: Task
    count: int
    held_count: int
    multiple: int
    always: tuple[str, ...]
    draw: Callable[[int], list[Image.Image]]
    wanted: list[int]
    real: Callable[[], list[Image.Image]]
    labels: list[int] = field(default_factory=list)

    def held_out_loss(self, repeats: int) -> float:
        """Mean loss over `repeats` draws of noise and time per held-out image; the same draws for every model."""
        return self.losses(self.held, range(self.held_count), repeats)

    def losses(self, task: Task, rows: Sequence[int], repeats: int) -> float:
        """Mean loss of rows of a task at the model's own resolution, in evaluation mode, with fixed draws."""
        size: Any = FullSize(GrowthConfig(resolution_multiple=self.multiple))
        task.enter_stage(size)
        total, mode = 0.0, self.denoiser.training
        self.denoiser.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(12345)
            for chunk in torch.tensor(list(rows) * repeats).split(32):
                total += float(task.loss(self.denoiser, {"index": chunk})) * len(chunk)
        self.denoiser.train(mode)
        return total / (len(rows) * repeats)


@dataclass(frozen=True)
class Case:
    """A pretrained model and a new domain.

    Attributes:
        name: For file names.
        title: For people.
        batch: Images per optimizer step.
        steps: Optimizer steps of the full schedule.
        load: (seed, folder of the caches, folder of further data) -> the model with its data.
        repeats: Draws of noise per held-out image in an evaluation.
    """

    name: str
    title: str
    batch: int
    steps: int
    load: Callable[[int, Path, Path | None], Subject]
    repeats: int = 1

    def open(self, seed: int, cache: Path, data_dir: Path | None) -> Subject:
        """The model with its data, for one run."""
        return self.load(seed, cache / self.name, data_dir)


def held_out(caption: str, one_in: int) -> bool:
    """Whether an emoji is held out; a caption names a codepoint, and skin-tone variants are not in the data."""
    return int(hashlib.sha256(caption.encode()).hexdigest(), 16) % one_in == 0


def _arguments(kind: Any, seed: int, folder: Path, **groups: Any) -> Any:
    train = TrainArguments(seed=seed, mixed_precision="no")
    return kind(train=train, output=PictureArguments(output_dir=str(folder)), **groups)


def _split(data: Any, one_in: int) -> tuple[Any, Any]:
    held = [row for row, text in enumerate(data["text"]) if held_out(text, one_in)]
    rest = sorted(set(range(len(data))) - set(held))
    # Flattened: a selection would be decoded through an index at every access.
    return data.select(rest).flatten_indices(), data.select(held).flatten_indices()


@lru_cache
def _style(style: str, data_dir: Path | None, size: int = SIZE) -> Any:
    """Columns `image` and `text` of a style: from packages, or from `emoji_styles_64.parquet` in `data_dir`."""
    if style == "openmoji":
        return emoji_dataset("openmoji", size=size)
    path = (data_dir or Path()) / "emoji_styles_64.parquet"
    if data_dir is None or not path.is_file():
        raise CaseError(
            f"style {style!r} needs --data_dir, a folder with emoji_styles_64.parquet (benchmarks/make_data.py); "
            f"got {data_dir}."
        )
    import datasets
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["image", "caption", "style"]).to_pylist()
    rows = [row for row in table if row["style"] == style and "skin tone" not in row["caption"]]
    columns = {"image": [{"bytes": row["image"], "path": None} for row in rows], "text": [r["caption"] for r in rows]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)


def _latents(pipeline: Any, data: Any, settings: Any, size: int = SIZE) -> Latents:
    train = settings.train
    accelerator = make_accelerator(
        settings.output, accumulation=1, mixed_precision=train.mixed_precision, seed=train.seed
    )
    return make_latents(pipeline, data, settings, accelerator, resolution=size)


def _sd(
    style: str, size: int = SIZE, source: Path = ASSETS / "tiny_sd"
) -> Callable[[int, Path, Path | None], Subject]:
    def load(seed: int, folder: Path, data_dir: Path | None) -> Subject:
        pipeline = load_pipeline(_there(source))
        args, other = (_arguments(Arguments, seed, folder / part) for part in ("train", "held"))
        train, held = _split(_style(style, data_dir, size), 20)
        parts = [
            TextToImage(pipeline, _latents(pipeline, data, settings, size), noise_settings(settings))
            for data, settings in ((train, args), (held, other))
        ]

        def draw(first: int) -> list[Image.Image]:
            options = {"size": size, "steps": PICTURE_STEPS, "guidance": GUIDANCE}
            return _chunked(
                held["text"], first, lambda some, seed: sample_images(pipeline, some, seed=seed, **options)
            )

        return _captioned(pipeline, pipeline.unet, parts, (train, held), multiple=16, draw=draw)

    return load


def _flow(style: str, size: int = SIZE, source: Path | None = None) -> Callable[[int, Path, Path | None], Subject]:
    def load(seed: int, folder: Path, data_dir: Path | None) -> Subject:
        pipeline = _tiny_flow(size) if source is None else load_flow(_there(source))
        flow = FlowSettings(max_sequence_length=16, proportion_empty_prompts=0.1)
        args = _arguments(FlowMatchingArguments, seed, folder / "train", flow=flow)
        full = dataclasses.replace(flow, proportion_empty_prompts=0.0)
        other = _arguments(FlowMatchingArguments, seed, folder / "held", flow=full)
        train, held = _split(_style(style, data_dir, size), 20)
        parts = [
            FlowMatching(pipeline, _latents(pipeline, data, settings, size), settings.flow, noise_settings(settings))
            for data, settings in ((train, args), (held, other))
        ]

        def draw(first: int) -> list[Image.Image]:
            options = {"size": size, "steps": PICTURE_STEPS, "guidance": GUIDANCE, "max_sequence_length": 16}
            return _chunked(held["text"], first, lambda some, seed: draw_prompts(pipeline, some, seed=seed, **options))

        return _captioned(pipeline, pipeline.transformer, parts, (train, held), multiple=8, draw=draw)

    return load


def _tiny_flow(size: int) -> Any:
    """The bundled SD3 pipeline for images that may be larger than those it was pretrained on."""
    pipeline = load_tiny_flow(ASSETS)
    # SD3's rule for more tokens (arXiv 2403.03206, section 5.3.2): the shift grows like the side.
    config = pipeline.scheduler.config
    pipeline.register_modules(scheduler=type(pipeline.scheduler).from_config(config, shift=config.shift * size / SIZE))
    return pipeline


def _there(folder: Path) -> str:
    """A pipeline's folder.

    Raises:
        CaseError: It is not there; the message says how to make it.
    """
    if not (folder / "model_index.json").is_file():
        script = f"recipes/assets/build/pretrain_larger.py --model {folder.name}"
        raise CaseError(f"there is no pipeline in {folder}: run `python {script} --minutes 30`, then with --export.")
    return str(folder)


def _dit(seed: int, folder: Path, data_dir: Path | None) -> Subject:
    del data_dir
    args = _arguments(ClassConditionalArguments, seed, folder / "train")
    other = _arguments(ClassConditionalArguments, seed, folder / "held", classes=ClassSettings(class_dropout=0.0))
    train, held = _split(emoji_classes("openmoji", "new"), 4)
    pipeline = load_tiny_dit(ASSETS)
    rows = set_classes(pipeline, class_names(train), seed=args.train.seed)
    parts = [
        ClassConditional(pipeline, _latents(pipeline, data, settings), noise_settings(settings), settings.classes)
        for data, settings in ((train, args), (held, other))
    ]
    wanted = [label for label in range(len(rows)) for _ in range(10)]
    names = class_names(train)

    def draw(first: int) -> list[Image.Image]:
        labels = [rows[names[label]] for label in wanted]
        options = {"steps": PICTURE_STEPS, "guidance": GUIDANCE}
        return _chunked(labels, first, lambda some, seed: draw_classes(pipeline, some, seed=seed, **options))

    return Subject(
        pipeline=pipeline,
        denoiser=pipeline.transformer,
        task=parts[0],
        held=parts[1],
        count=len(train),
        held_count=len(held),
        multiple=8,
        always=("class_embedder",),
        draw=draw,
        wanted=wanted,
        real=lambda: _images(held, train),
        labels=[*held["label"], *train["label"]],
    )


def _captioned(pipeline: Any, model: nn.Module, parts: Any, data: Any, *, multiple: int, draw: Any) -> Subject:
    train, held = data
    return Subject(
        pipeline=pipeline,
        denoiser=model,
        task=parts[0],
        held=parts[1],
        count=len(train),
        held_count=len(held),
        multiple=multiple,
        always=(),
        draw=draw,
        wanted=list(range(len(held))),
        real=lambda: _images(held, train),
    )


def _images(held: Any, train: Any) -> list[Image.Image]:
    return [image.convert("RGB") for data in (held, train) for image in data["image"]]


def _chunked(
    items: Sequence[Any], first: int, draw: Callable[[Sequence[Any], int], list[Image.Image]]
) -> list[Image.Image]:
    """Pictures in batches of 32, every one with a seed of its own."""
    items = list(items)
    starts = range(0, len(items), 32)
    return [image for at in starts for image in draw(items[at : at + 32], first + at)]


CASES = {
    case.name: case
    for case in (
        Case("sd_openmoji", "tiny SD to OpenMoji", 8, 160, _sd("openmoji")),
        Case("dit_classes", "tiny DiT to new classes", 8, 160, _dit, repeats=2),
        Case("flow_openmoji", "tiny SD3 to OpenMoji", 8, 160, _flow("openmoji")),
        Case("sd_noto", "tiny SD to Noto", 8, 160, _sd("noto")),
    )
}
# The same models at twice the side they were pretrained at: latents of 32x32.
LARGER = {
    case.name: case
    for case in (
        Case("sd_128", "tiny SD to OpenMoji, 128 pixels", 8, 160, _sd("openmoji", 2 * SIZE)),
        Case("flow_128", "tiny SD3 to OpenMoji, 128 pixels", 8, 160, _flow("openmoji", 2 * SIZE)),
    )
}
# Models of 28 and 31 M parameters, pretrained at the side they are fine-tuned at.
MORE_PARAMETERS = {
    case.name: case
    for case in (
        Case("sd_28m", "UNet of 28 M to OpenMoji, 128 pixels", 8, 160, _sd("openmoji", 2 * SIZE, PRETRAINED / "unet")),
        Case(
            "flow_31m", "SD3 of 31 M to OpenMoji, 128 pixels", 8, 160, _flow("openmoji", 2 * SIZE, PRETRAINED / "flow")
        ),
    )
}
