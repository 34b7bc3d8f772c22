"""Data sets of a few small images, as folders and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import datasets
import numpy as np
from PIL import Image


COUNT = 24
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write_captioned(folder: Path, count: int = COUNT) -> Path:
    """Images, wide and tall, with a caption each in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    random, lines = np.random.default_rng(0), []
    for index in range(count):
        size = (40, 32) if index % 2 else (32, 40)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.NEAREST).save(folder / f"{index:02d}.png")
        lines.append(json.dumps({"file_name": f"{index:02d}.png", "text": f"picture {ascii_lowercase[index]}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_classes(
    root: Path, count: int = 10, classes: Sequence[str] = ("blue", "red"), size: tuple[int, int] = (8, 10)
) -> Path:
    """One folder per class of images in the class's colour."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, COLOURS[name]).save(root / name / f"{index}.png")
    return root


def write_parquet(folder: Path, column: str, values: list[Any]) -> Path:
    """A folder with a parquet file of red images and one more column."""
    images = [Image.new("RGB", (8, 8), (20 * index, 0, 0)) for index in range(len(values))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": images}, features=features).add_column(column, values)
    folder.mkdir(parents=True)
    data.to_parquet(folder / "train.parquet")
    return folder


def save(path: Path, colour: str = "red") -> Path:
    """One image; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() == ".jfif" else None
    Image.new("RGB", (8, 8), colour).save(path, kind)
    return path


def describe(folder: Path, captions: dict[str, Any], **more: Any) -> Path:
    """A metadata.jsonl with a caption of every file."""
    lines = [json.dumps({"file_name": name, "text": text, **more}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_table(path: Path, captions: Sequence[Any], labels: Sequence[Any] | None = None) -> Path:
    """A parquet file of red images with captions and labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.new("RGB", (8, 8), "red") for _ in captions]
    columns = {"image": images, "text": list(captions), "label": list(labels or range(len(captions)))}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Dataset.from_dict({"text": list(captions)}).features["text"],
            "label": datasets.Value("int64"),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path
