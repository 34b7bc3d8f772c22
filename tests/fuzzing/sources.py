"""Damaged data sets: captions, tables and arrays; each is refused, or read as far as it says."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import datasets
import numpy as np
from data.damage import encode, picture

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.labelled import load_train_and_val
from autoprog_diffusion.data.report import DataReport

from .mutate import changed_value, damaged, require


COUNT = 4


class Captions:
    """A folder of images with a metadata file, or with a text file beside every image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "images"
        self._cache = folder / "cache"
        self._image = encode(picture(12, 8), "PNG")

    def case(self, chance: random.Random) -> str:
        """Damage the captions, and read the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        for number in range(COUNT):
            (self._folder / f"{number}.png").write_bytes(self._image)
        write = chance.choice([self._lines, self._table, self._texts])
        write(chance)
        report = DataReport()
        data = load_captioned_images(
            train_data_dir=str(self._folder), resolution=8, cache_dir=str(self._cache), report=report
        )
        (reading,) = report.readings
        require(reading.used == len(data), f"{len(data)} rows, reported as {reading.line()}")
        require(reading.found >= COUNT, f"of {COUNT} images some are not reported: {reading.line()}")
        require(len(data), "no row, and no error")
        for row, text in enumerate(data["text"]):
            texts = text if isinstance(text, list) else [text]
            require(texts and all(isinstance(one, str) and one.strip() for one in texts), f"row {row} has {text!r}")
            read_image(data, row)
        return "read"

    def _lines(self, chance: random.Random) -> None:
        rows = [{"file_name": f"{number}.png", "text": f"picture {number}"} for number in range(COUNT)]
        if chance.random() < 0.5:
            rows = changed_value(chance, rows)
        content = "\n".join(map(json.dumps, rows)).encode(chance.choice(["utf-8", "utf-8-sig", "utf-16"]))
        (self._folder / "metadata.jsonl").write_bytes(damaged(chance, content))

    def _table(self, chance: random.Random) -> None:
        lines = ["file_name,text", *(f'{number}.png,"picture, {number}"' for number in range(COUNT))]
        content = "\r\n".join(lines).encode(chance.choice(["utf-8", "utf-8-sig", "latin-1"]))
        (self._folder / "metadata.csv").write_bytes(damaged(chance, content))

    def _texts(self, chance: random.Random) -> None:
        for number in range(COUNT):
            content = f"a picture, gr\u00fcn {number}\n".encode(chance.choice(["utf-8", "utf-16", "latin-1"]))
            (self._folder / f"{number}.txt").write_bytes(content)
        path = self._folder / f"{chance.randrange(COUNT)}.txt"
        path.write_bytes(damaged(chance, path.read_bytes()))


class Tables:
    """Labelled images in a parquet file or an npz."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        images = [picture(12, 8, seed) for seed in range(8)]
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
        rows = {"image": images, "label": [0, 1] * 4}
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "whole.parquet"))
        pixels = np.zeros((8, 8, 8, 3), np.uint8)
        np.savez(folder / "whole.npz", x=pixels, y=np.array([0, 1] * 4), classes=np.array(["a", "b"]))

    def case(self, chance: random.Random) -> str:
        """Read a damaged file."""
        ending = chance.choice(["parquet", "npz"])
        path = self._folder / f"bad.{ending}"
        path.write_bytes(damaged(chance, (self._folder / f"whole.{ending}").read_bytes()))
        train, val = load_train_and_val(train_data=str(path), size=8, seed=0, val_fraction=0.25)
        require(len(train) + len(val) == 8, f"{len(train)} and {len(val)} rows of 8")
        return "read"
