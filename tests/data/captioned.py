"""Folders of captioned images: made, read, and what was read of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.reading import Reading
from autoprog_diffusion.data.report import DataReport

from .folders import describe, save


def load(folder: Path, **values: Any) -> tuple[datasets.Dataset, Reading]:
    report = DataReport()
    data = load_captioned_images(train_data_dir=str(folder), resolution=8, report=report, **values)
    reading = report.readings[0]
    assert reading.used == len(data)
    for row in range(len(data)):
        read_image(data, row).close()  # Pillow keeps files of several frames open
    return data, reading


def captions_of(data: datasets.Dataset) -> dict[str, Any]:
    """Caption by the image's file name."""
    paths = data.cast_column("image", datasets.Image(decode=False))
    return {os.path.basename(row["image"]["path"]): row["text"] for row in paths}


def left_out(reading: Reading) -> dict[str, int]:
    return {reason: item.count for reason, item in reading.left_out.items()}


def with_texts(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name).with_suffix(".txt").write_text(f"of {name}")
    return folder


def with_metadata(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name)
    return describe(folder, {name: f"of {name}" for name in names})
