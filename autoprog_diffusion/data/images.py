"""Captioned images: loaded by `datasets`, checked, and turned into pixel tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.training.arguments import DataArguments

from .emoji import emoji_dataset


if TYPE_CHECKING:
    import datasets

DEFAULT_STYLE = "openmoji"


class DataError(GrowthError):
    """The training data cannot be used."""


def load_captioned_images(args: DataArguments, resolution: int, cache_dir: str | None = None) -> datasets.Dataset:
    """The training set that the arguments name, with columns `image` and `text`; by default OpenMoji's training split.

    Raises:
        DataError: Both a folder and a name are given, nothing is there, or the columns are missing.
    """
    if args.train_data_dir and args.dataset_name:
        raise DataError("--train_data_dir and --dataset_name are both given: give one.")
    if not args.train_data_dir and not args.dataset_name:
        try:
            data = emoji_dataset(DEFAULT_STYLE, size=resolution, split="train")
        except (ImportError, ValueError) as error:
            raise DataError(f"the default data cannot be made: {error}") from error
    else:
        data = _columns(_load(args, cache_dir), args)
    if args.max_train_samples is not None:
        data = data.select(range(min(args.max_train_samples, len(data))))
    _check_captions(data)
    return data


def check_batch(count: int, per_step: int) -> None:
    """Refuse a training set that does not fill one batch on every process.

    Raises:
        DataError: It has fewer images than that.
    """
    if count < per_step:
        raise DataError(
            f"the training set has {count} images, fewer than one batch of {per_step} over all processes: lower "
            "--train_batch_size or add images."
        )


@dataclass(frozen=True)
class Window:
    """What of an image is trained on, in pixels.

    Attributes:
        width: Of the resized image.
        height: Of the resized image.
        left: Of the crop in the resized image.
        top: Of the crop in the resized image.
        mirrored: Whether the crop is mirrored.
    """

    width: int
    height: int
    left: int
    top: int
    mirrored: bool


def crop_window(
    size: tuple[int, int], side: int, args: DataArguments, generator: torch.Generator | None = None
) -> Window:
    """Where a square is cut from an image, the shorter side resized to fit.

    Args:
        size: Width and height of the image in pixels.
        side: Of the square in pixels.
        args: Crop and flip.
        generator: Draws crop and flip; None crops the centre and does not flip.
    """
    scale = side / min(size)
    width, height = (max(side, round(length * scale)) for length in size)
    random = generator is not None and not args.center_crop
    left, top = (_offset(length - side, generator if random else None) for length in (width, height))
    mirrored = generator is not None and args.random_flip and bool(torch.rand((), generator=generator) < 0.5)
    return Window(width, height, left, top, mirrored)


def to_pixels(image: Image.Image, size: int, args: DataArguments, generator: torch.Generator | None = None) -> Tensor:
    """A PIL image -> (3, size, size) float32 in [-1, 1]: shorter side resized, then cropped, perhaps mirrored.

    Args:
        image: Any mode; transparency is laid on white.
        size: Side of the result in pixels.
        args: Interpolation, crop and flip.
        generator: Draws crop and flip; None crops the centre and does not flip.
    """
    return cut(image, crop_window(image.size, size, args, generator), size, args)


def cut(image: Image.Image, window: Window, size: int, args: DataArguments) -> Tensor:
    """The window of an image, (3, size, size) float32 in [-1, 1]; transparency is laid on white."""
    image = _flatten(image)
    if (window.width, window.height) != image.size:
        filter_ = Image.Resampling[args.image_interpolation_mode.upper()]
        image = image.resize((window.width, window.height), filter_)
    box = (window.left, window.top, window.left + size, window.top + size)
    pixels = np.asarray(image.crop(box), dtype=np.float32)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0
    return tensor.flip(-1) if window.mirrored else tensor


def read_image(data: datasets.Dataset, index: int) -> Image.Image:
    """Decode one image.

    Raises:
        DataError: It is corrupt or missing; the message names the row and the file.
    """
    try:
        image = data[index]["image"]
        image.load()
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise DataError(
            f"image {index} of the training set cannot be decoded{_file(data, index)}: {error}."
        ) from error
    return image


def _load(args: DataArguments, cache_dir: str | None) -> Any:
    from datasets import load_dataset

    folder = Path(args.train_data_dir or "")
    if args.train_data_dir and (not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*"))):
        raise DataError(f"--train_data_dir {args.train_data_dir} is not a folder with files in it.")
    try:
        if args.train_data_dir:
            if any(folder.rglob("*.parquet")):
                return load_dataset(
                    "parquet", data_files=str(folder / "**/*.parquet"), split="train", cache_dir=cache_dir
                )
            return load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache_dir)
        return load_dataset(args.dataset_name or "", args.dataset_config_name, split="train", cache_dir=cache_dir)
    except Exception as error:
        # Whatever `datasets` raises (its own, pyarrow's, OS errors) means the same to the user: this data is unusable.
        raise DataError(
            f"the training set {args.train_data_dir or args.dataset_name} cannot be loaded: {error}"
        ) from error


def _columns(data: Any, args: DataArguments) -> datasets.Dataset:
    from datasets import Image as ImageFeature

    for flag, name in (("image_column", args.image_column), ("caption_column", args.caption_column)):
        if name not in data.column_names:
            hint = " Captions of an image folder come from a metadata.jsonl: {'file_name': ..., 'text': ...} a line."
            raise DataError(f"--{flag} {name!r} is not a column of the data; it has {data.column_names}.{hint}")
    data = data.select_columns([args.image_column, args.caption_column])
    data = data.rename_columns(
        {args.image_column: "image", args.caption_column: "text"}
        if args.image_column != "image" or args.caption_column != "text"
        else {}
    )
    return data.cast_column("image", ImageFeature())


def _check_captions(data: datasets.Dataset) -> None:
    if not len(data):
        raise DataError("the training set is empty.")
    for index, text in enumerate(data["text"]):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"row {index} of the training set has no caption{_file(data, index)}: got {text!r}.")


def _file(data: datasets.Dataset, index: int) -> str:
    from datasets import Image as ImageFeature

    path = data.cast_column("image", ImageFeature(decode=False))[index]["image"].get("path")
    return f" ({path})" if path else ""


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _offset(room: int, generator: torch.Generator | None) -> int:
    return room // 2 if generator is None else int(torch.randint(room + 1, (), generator=generator))
