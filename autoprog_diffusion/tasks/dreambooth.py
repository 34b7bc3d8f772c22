"""DreamBooth (arXiv 2208.12242): a few pictures of one subject, and pictures of its class that must not change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from autoprog_diffusion.data.emoji import emoji_dataset
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.items import image_table, leave_out_unused
from autoprog_diffusion.data.latents import Batch
from autoprog_diffusion.data.listing import File, Listing, list_files, stamp_of
from autoprog_diffusion.data.placement import on_device
from autoprog_diffusion.data.reading import Reading
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.samples import sampling, seeds

from .flow_pictures import draw_with
from .stable_diffusion import TextToImage


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

# Captions of the default subject's pictures; "with tears of joy" and "with wry smile" are left for what it learned.
DEFAULT_FACES = (
    "cat face", "grinning cat face with smiling eyes", "smiling cat face with open mouth",
    "kissing cat face with closed eyes", "pouting cat face", "weary cat face",
)  # fmt: skip


@dataclass(frozen=True)
class SubjectSettings:
    """Subject and class; names are those of Diffusers' train_dreambooth.py."""

    instance_data_dir: str | None = None
    """Folder of pictures of the subject [a blue cat, from a pip package]."""
    instance_prompt: str | None = None
    """Prompt with a rare word that names the subject, for example "a photo of sks dog"."""
    with_prior_preservation: bool = False
    """Train on pictures of the class as well, so that the class is not forgotten."""
    class_data_dir: str | None = None
    """Folder of pictures of the class; the model draws those that are missing [class_images in the output folder]."""
    class_prompt: str | None = None
    """Prompt of the class, for example "a photo of dog"."""
    num_class_images: int = 100
    """Number of pictures of the class."""
    prior_loss_weight: float = 1.0
    """Weight of the loss on the class."""
    sample_batch_size: int = 4
    """Pictures of the class that are drawn at a time."""


def check_subject(subject: SubjectSettings) -> None:
    """Refuse subject arguments that do not fit together.

    Raises:
        ConfigError: The message names the flag and the fix.
    """
    if not subject.instance_prompt:
        raise ConfigError("--instance_prompt is missing: give a prompt with a rare word that names the subject.")
    if subject.with_prior_preservation and not subject.class_prompt:
        raise ConfigError("--with_prior_preservation needs --class_prompt, for example the class's plain name.")
    for name in ("class_data_dir", "class_prompt"):
        if getattr(subject, name) and not subject.with_prior_preservation:
            raise ConfigError(f"--{name} does nothing without --with_prior_preservation: add it, or remove the flag.")
    for name in ("num_class_images", "sample_batch_size"):
        value = getattr(subject, name)
        if value < 1:
            raise ConfigError(f"--{name} {value} is not allowed: use a whole number of at least 1.")
    if not subject.prior_loss_weight >= 0:
        raise ConfigError(f"--prior_loss_weight {subject.prior_loss_weight} is not allowed: use 0 or more.")


def list_images(folder: str | Path, flag: str, reading: Reading | None = None, most: int | None = None) -> list[Path]:
    """The image files of a folder, in the order of their names; folders in it are not read.

    Args:
        folder: To list.
        flag: That names it.
        reading: Counts what is left out.
        most: Take only the first so many.

    Raises:
        DataError: It is not a folder, or holds none.
    """
    path = Path(os.path.expanduser(folder))
    if not path.is_dir():
        raise DataError(f"--{flag} {folder} is not a folder.")
    listing = list_files(path, deep=False)
    if not listing.images:
        raise DataError(f"--{flag} {folder} holds no image file (such as .png or .jpg){_held(listing)}.")
    files = listing.images[:most]
    if reading is not None:
        leave_out_unused(
            listing,
            used=files,
            reading=reading,
            unlisted=f"beyond the first {most}",
        )
        reading.used = len(files)
    return [Path(file.path) for file in files]


def _held(listing: Listing) -> str:
    """Some of the files that are no images, for a message."""
    names = [file.name for file in (*listing.others, *listing.captions)]
    names += [name for skipped in listing.skipped.values() for name in skipped]
    return f"; it holds for example {names[:3]}" if names else ""


def images_of(files: Sequence[Path], prompt: str, *, subject: bool = True) -> datasets.Dataset:
    """Columns `image` and `text`, the same prompt for every file, and `subject`: whether they show it or its class."""
    found = [File(str(file), file.name, stamp_of(file.stat())) for file in files]
    data = image_table(
        found,
        values=[prompt] * len(found),
        image_column="image",
        column="text",
    )
    return data.add_column("subject", [subject] * len(found))  # type: ignore[call-arg]


def draw_class_images(
    pipeline: Any,
    folder: Path,
    accelerator: Accelerator,
    subject: SubjectSettings,
    *,
    size: int,
    steps: int,
    guidance: float,
    seed: int,
    max_sequence_length: int | None = None,
    reading: Reading | None = None,
) -> list[Path]:
    """The files of the class, after the pipeline has drawn those that are missing; processes share the work.

    Every picture has a seed of its own, so that a run that was killed here draws the same ones.

    Args:
        pipeline: Draws; it is on the device while it does.
        folder: Of the files.
        accelerator: Of the run.
        subject: Prompt and number of the pictures.
        size: Side of the pictures in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        seed: Of the first picture.
        max_sequence_length: Tokens of text that a transformer takes; None for its pipeline's own number.
        reading: Counts what is left out.

    Raises:
        DataError: The folder cannot be written.
    """
    _make_folder(folder)
    missing = _missing_pictures(folder, subject.num_class_images)
    accelerator.wait_for_everyone()  # all have looked before one draws
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    draw = partial(
        draw_with, pipeline, size=size, steps=steps, guidance=guidance, max_sequence_length=max_sequence_length
    )
    for start in range(0, len(mine), subject.sample_batch_size):
        numbers = mine[start:][: subject.sample_batch_size]
        prompts = [subject.class_prompt or ""] * len(numbers)
        generators = [seeds(seed + number, 1)[0] for number in numbers]
        with drawing_on(pipeline, accelerator.device):
            images = draw(prompts, generators)
        for number, image in zip(numbers, images):
            _save(image, folder / _drawn_name(number))
    accelerator.wait_for_everyone()
    return list_images(folder, "class_data_dir", reading, subject.num_class_images)


@contextmanager
def drawing_on(pipeline: Any, device: torch.device) -> Iterator[None]:
    """Inside a `with` block a pipeline draws, with all of its parts on a device in float32."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    with sampling(pipeline), on_device(modules, device, dtype=torch.float32):
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--class_data_dir {folder} cannot be written: {error}.") from error


def _save(image: Image.Image, path: Path) -> None:
    """Save so that a killed run leaves no half of a picture, which the next one would take as drawn."""
    temporary = path.with_name(f"{path.name}.tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def _drawn_name(number: int) -> str:
    return f"generated-{number:05d}.png"


def _missing_pictures(folder: Path, count: int) -> list[int]:
    """Numbers of the pictures to draw, so that there are `count` with the files that the user put there."""
    present = {file.name for file in list_files(folder, deep=False).images}
    given = present - set(map(_drawn_name, range(count)))
    return [number for number in range(count - len(given)) if _drawn_name(number) not in present]


def default_subject(folder: Path, size: int, accelerator: Accelerator) -> list[Path]:
    """Six faces of a blue cat, saved as files: Twemoji's yellow one with red and blue exchanged."""
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        emoji = emoji_dataset("twemoji", size=size)
        pictures = dict(zip(emoji["text"], emoji["image"]))
        for number, caption in enumerate(DEFAULT_FACES):
            red, green, blue = pictures[caption].split()
            Image.merge("RGB", (blue, green, red)).save(folder / f"{number}.png")
    accelerator.wait_for_everyone()
    return list_images(folder, "instance_data_dir")


def pair_up(instances: int, classes: int) -> list[tuple[int, ...]]:
    """Pairs of rows that train together: of the subject and of the class, the shorter list repeated."""
    return [(item % instances, instances + item % classes) for item in range(max(instances, classes))]


def in_one_row(batch: Batch) -> Batch:
    """A batch of pairs (N, 2, ...) as one of all subjects and then all pictures of the class, (2N, ...)."""
    return {name: value.transpose(0, 1).flatten(0, 1) for name, value in batch.items()}


@dataclass(eq=False)
class Dreambooth(TextToImage):
    """The loss on the subject, and the weighted one on the class where rows come in pairs.

    Attributes:
        prior_loss_weight: Weight of the loss on the class; the other attributes are those of `TextToImage`.
    """

    _: KW_ONLY
    prior_loss_weight: float = 1.0

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Loss of one batch, () float32.

        Args:
            denoiser: The prepared UNet.
            batch: As `Latents.draw` takes it; with a second axis of two, subject and class.
        """
        if batch["index"].dim() == 1:
            return super().loss(denoiser, batch)
        parts = [value.chunk(2) for value in self.denoise(denoiser, in_one_row(batch))]
        subject, prior = (self.weighted(*half) for half in zip(*parts))
        return subject + self.prior_loss_weight * prior
