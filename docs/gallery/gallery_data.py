"""The data of the examples: real pictures from packages, written as the folders and files that the recipes read."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as parquet
from PIL import Image, ImageOps

from autoprog_diffusion.data.emoji import emoji_dataset, file_key, svg_files, svg_image


ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS / "peft_image_gen"))

import subject


SIZE = 64  # of the bundled models' pictures
# Layers of an OpenMoji file; without these the black edition of the same picture is left.
COLOURS = ("color", "color-foreground", "hair", "skin", "skin-shadow")
EMPTY = ("Flags",)  # categories of which nothing but a frame is left
VALIDATION = 2000  # pictures that the vision transformer is validated on
PARTS = ("train", "held_out")


def line_art(folder: Path) -> None:
    """OpenMoji without its colours: `train` and `held_out`, which share no emoji, with a caption each."""
    files = svg_files("openmoji")
    for part in PARTS:
        rows = emoji_dataset("openmoji", size=SIZE, split=part).remove_columns("image")
        pictures = []
        for row in rows:
            if row["category"] not in EMPTY:
                image = svg_image(lines_of(files[file_key(row["codepoints"])]), SIZE)
                pictures.append(subject.Picture(image, row["text"]))
        subject.write(pictures, folder / part, SIZE)


def lines_of(path: Path) -> str:
    """A graphic without its colours."""
    root = ElementTree.parse(path).getroot()
    for layer in list(root):
        if layer.get("id") in COLOURS:
            root.remove(layer)
    return ElementTree.tostring(root, encoding="unicode")


def blue_mouse(folder: Path) -> None:
    """Twenty faces of one blue mouse, as benchmarks/peft_image_gen splits them; those of its test are not written."""
    pictures = subject.split(subject.blue_mouse(SIZE))
    for part, found in zip(PARTS, (pictures.train, pictures.validation)):
        subject.write(found, folder / part, SIZE)


def fashion(folder: Path) -> None:
    """Fashion-MNIST as benchmarks/make_fashion.py writes it, fetched with apt-get."""
    command = [sys.executable, str(BENCHMARKS / "make_fashion.py"), "--data_dir", str(folder)]
    subprocess.run(command, check=True)


def clothes(folder: Path) -> None:
    """Fashion-MNIST as the DiT takes it: dark on white, 64 pixels, a folder for every class; few pictures of each."""
    fashion(folder)
    for part, (file, most) in zip(PARTS, (("fashion_train", 200), ("fashion_test", 8))):
        table = parquet.read_table(folder / f"{file}.parquet")
        names = table.schema.metadata[b"names"].decode().split(",")
        counts = dict.fromkeys(names, 0)
        for row in table.to_pylist():
            name = names[row["label"]]
            if counts[name] < most:
                place = folder / part / name.split("/")[0]
                place.mkdir(parents=True, exist_ok=True)
                image = ImageOps.invert(Image.open(io.BytesIO(row["image"])))
                image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{counts[name]:03}.png")
                counts[name] += 1
    test = parquet.read_table(folder / "fashion_test.parquet")
    parquet.write_table(test.slice(0, VALIDATION), folder / "fashion_validation.parquet")
