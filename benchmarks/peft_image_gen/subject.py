"""Twenty pictures of one subject with a caption each, split as PEFT splits them: 14 train, 2 validate, 4 test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


WORD = "zwx"  # the rare word that names the subject
VALIDATION, TEST = 2, 4
SCALE = 4  # masks and ears are drawn so many times larger, and made smaller smoothly
FACES = (
    "grinning face", "grinning face with smiling eyes", "face with tears of joy", "smiling face with open mouth",
    "smiling face with halo", "winking face", "smiling face with heart-shaped eyes", "smiling face with sunglasses",
    "smirking face", "neutral face", "kissing face", "face with stuck-out tongue", "crying face", "sleeping face",
    "face with medical mask", "nerd face", "thinking face", "face with cowboy hat", "astonished face",
    "upside-down face",
)  # fmt: skip
# Of the bundled model: the subject's class first, then what has nothing to do with it.
DRIFT_PROMPTS = (
    "winking face", "crying face", "relieved face", "angry face", "cat face",
    "red heart", "hamburger", "automobile", "soccer ball", "rocket",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture of the subject, and the prompt that asks for it."""

    image: Image.Image
    prompt: str


@dataclass(frozen=True)
class Split:
    """The pictures of a subject."""

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]


def split(pictures: Sequence[Picture]) -> Split:
    """PEFT's split: numpy's shuffle under seed 0; the last pictures are the test's.

    Raises:
        SystemExit: There are too few pictures.
    """
    if len(pictures) <= VALIDATION + TEST:
        raise SystemExit(f"{len(pictures)} pictures are too few: {VALIDATION} validate, {TEST} test, the rest trains.")
    order = np.arange(len(pictures))
    np.random.RandomState(0).shuffle(order)
    shuffled = [pictures[index] for index in order]
    count = len(pictures) - VALIDATION - TEST
    return Split(
        train=tuple(shuffled[:count]),
        validation=tuple(shuffled[count : count + VALIDATION]),
        test=tuple(shuffled[count + VALIDATION :]),
    )


def blue_mouse(size: int) -> list[Picture]:
    """Faces of one blue mouse: Twemoji's with red and blue exchanged, smaller, and with two ears behind."""
    from autoprog_diffusion.data.emoji import emoji_dataset

    emoji = emoji_dataset("twemoji", size=size)
    known = dict(zip(emoji["text"], emoji["image"]))
    return [Picture(with_ears(known[caption]), f"{WORD} {caption}") for caption in FACES]


def with_ears(face: Image.Image) -> Image.Image:
    """The blue mouse whose expression is that of a yellow face on white."""
    size = face.width
    side = 3 * size // 4
    red, green, blue = face.convert("RGB").split()
    small = Image.merge("RGB", (blue, green, red)).resize((side, side), Image.Resampling.LANCZOS)
    large = Image.new("RGB", (SCALE * size, SCALE * size), "white")
    draw = ImageDraw.Draw(large)
    for middle in (5 * size // 8, SCALE * size - 5 * size // 8):
        disc(draw, middle, radius=3 * size // 5, colour=(0x22, 0x66, 0x99))
        disc(draw, middle, radius=3 * size // 10, colour=(0xFF, 0xAA, 0xC8))
    result = large.resize((size, size), Image.Resampling.LANCZOS)
    mask = Image.new("L", (SCALE * side, SCALE * side))
    ImageDraw.Draw(mask).ellipse((0, 0, SCALE * side - 1, SCALE * side - 1), fill=255)
    place = (size // 8, size - side - size // 32)
    result.paste(small, place, mask.resize((side, side), Image.Resampling.LANCZOS))
    return result


def disc(draw: ImageDraw.ImageDraw, middle: int, radius: int, colour: tuple[int, int, int]) -> None:
    """A filled circle around (`middle`, as far from the top as an ear is)."""
    height = 5 * draw.im.size[1] // (8 * SCALE)
    draw.ellipse((middle - radius, height - radius, middle + radius, height + radius), fill=colour)


def hub_pictures(name: str, prompts: Sequence[str]) -> list[Picture]:
    """The pictures of a data set of the Hub, or of a folder that `datasets` loads, with a prompt each.

    Raises:
        SystemExit: There are not as many prompts as pictures.
    """
    from datasets import load_dataset
    from PIL.ImageOps import exif_transpose

    images = load_dataset(name, split="train")["image"]
    if len(images) != len(prompts):
        raise SystemExit(
            f"{name} has {len(images)} pictures, and there are {len(prompts)} prompts: give one for each."
        )
    return [Picture(exif_transpose(image.convert("RGB")), prompt) for image, prompt in zip(images, prompts)]


def write(pictures: Sequence[Picture], folder: Path, size: int) -> None:
    """A folder of images with captions that the recipes read; all squares, as PEFT makes them."""
    folder.mkdir(parents=True)
    lines = []
    for number, picture in enumerate(pictures):
        name = f"{number:04}.png"
        picture.image.resize((size, size), Image.Resampling.BILINEAR).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": picture.prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
