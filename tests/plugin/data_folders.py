"""Small data sets on disk, in all the forms that Diffusers' scripts read."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import pipelines


FRAMES = 9
BOX = [2.0, 2.0, 14.0, 12.0]


def write_named(folder: Path) -> Path:
    """Pictures alone."""
    return pipelines.write_images(folder, captions=False)


def write_captioned(folder: Path) -> Path:
    """An image folder with captions."""
    return pipelines.write_images(folder, captions=True)


def write_conditioned(folder: Path, count: int = pipelines.COUNT) -> Path:
    """Pictures with a caption, and a picture to condition on, under all the names scripts use."""
    pipelines.write_images(folder, captions=False, count=count)
    names = sorted(path.name for path in folder.glob("*.png"))
    lines = [
        {
            "file_name": name,
            "conditioning_image_file_name": other,
            "input_image_file_name": other,
            "edited_image_file_name": name,
            "edit_prompt": f"picture {name}",
            "text": f"a picture {name}",  # 16 tokens: the script of CogView4 does not pad its mask
        }
        for name, other in zip(names, [*names[1:], names[0]])
    ]
    return _write_lines(folder / "metadata.jsonl", lines)


def write_masked(folder: Path) -> Path:
    """Pictures with a mask and a prompt, to train on and to test with."""
    for split in ("train", "test"):
        pipelines.write_images(folder / split, captions=False)
        lines = []
        for path in sorted((folder / split).glob("*.png")):
            mask = path.with_name(f"mask_{path.name}")
            pixels = np.zeros((16, 20), dtype=np.uint8)
            pixels[4:12, 4:16] = 255
            Image.fromarray(pixels).save(mask)
            lines.append({"file_name": path.name, "mask_file_name": mask.name, "prompt": f"picture {path.stem}"})
        _write_lines(folder / split / "metadata.jsonl", lines)
    return folder


def write_videos(folder: Path) -> Path:
    """Videos as arrays, with lists of their paths and captions."""
    folder.mkdir(parents=True)
    for index in range(pipelines.COUNT):
        np.save(folder / f"{index}.npy", _frames(index))
    names = [f"{index}.npy" for index in range(pipelines.COUNT)]
    (folder / "videos.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    captions = [f"video {index}" for index in range(pipelines.COUNT)]
    (folder / "prompts.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def write_animations(folder: Path) -> Path:
    """Animated pictures in a folder, and their captions in another one."""
    for name in ("videos", "metas"):
        (folder / name).mkdir(parents=True)
    for index in range(pipelines.COUNT):
        first, *others = [Image.fromarray(frame) for frame in _frames(index)]
        first.save(folder / "videos" / f"{index}.gif", save_all=True, append_images=others)
        (folder / "metas" / f"{index}.txt").write_text(f"video {index}", encoding="utf-8")
    return folder


def _frames(index: int) -> np.ndarray:
    """Frames of a video, (F, H, W, C) bytes."""
    random = np.random.default_rng(index)
    start = random.integers(0, 128, (1, 16, 16, 3))
    return (start + 12 * np.arange(FRAMES)[:, None, None, None]).astype(np.uint8)


def write_shards(folder: Path) -> Path:
    """A WebDataset of pictures and captions that say to be large, with hardly a watermark."""
    # Scripts have two names for a size.
    sides = dict.fromkeys(("original_width", "original_height", "width", "height"), 1024)
    sizes = json.dumps({**sides, "pwatermark": 0.1}).encode()
    samples = []
    for index, data in enumerate(_encoded(folder)):
        samples += [(f"{index}.png", data), (f"{index}.txt", f"picture {index}".encode()), (f"{index}.json", sizes)]
    return _write_tar(folder / "0.tar", samples)


def write_preferences(folder: Path) -> Path:
    """Pairs of pictures of which one is preferred, as rows of a Parquet file and as a WebDataset."""
    import pandas

    rows: list[dict[str, Any]] = []
    samples = []
    pictures = _encoded(folder)
    for index, (one, other) in enumerate(zip(pictures, [*pictures[1:], pictures[0]])):
        label = float(index % 2)
        caption = f"picture {index}"
        rows.append({"jpg_0": one, "jpg_1": other, "label_0": label, "caption": caption})
        samples += [
            (f"{index}.jpg_0.jpg", one),
            (f"{index}.jpg_1.jpg", other),
            (f"{index}.label_0.txt", str(label).encode()),
            (f"{index}.label_1.txt", str(1 - label).encode()),
            (f"{index}.original_prompt.txt", caption.encode()),
        ]
    (folder / "rows").mkdir()
    pandas.DataFrame(rows).to_parquet(folder / "rows" / "validation.parquet")
    _write_tar(folder / "0.tar", samples)
    return folder


def write_boxes(folder: Path) -> Path:
    """Pictures, and the file of their captions and boxes with embedded texts."""
    pipelines.write_images(folder / "images", captions=False)
    rows = []
    for path in sorted((folder / "images").glob("*.png")):
        box = {"bbox": list(BOX), "text_embeddings_before_projection": torch.randn(768)}
        rows.append({"file_path": path.name, "annos": [box], "captions": [f"picture {path.stem}"]})
    torch.save(rows, folder / "boxes.pth")
    return folder


def write_embedded(folder: Path) -> Path:
    """Pictures, with texts that were embedded before, for SD3 by the hash of a file and for Flux by that of pixels."""
    import pandas

    pipelines.write_images(folder / "images", captions=False)
    random = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {"sd3": [], "flux": []}
    for path in sorted((folder / "images").glob("*.png")):
        pixels = Image.open(path).convert("RGB").tobytes()
        row = {"prompt_embeds": random.standard_normal(154 * 4096, dtype=np.float32)}
        row |= {"pooled_prompt_embeds": random.standard_normal(2048, dtype=np.float32)}
        rows["sd3"].append(row | {"image_hash": hashlib.sha256(path.read_bytes()).hexdigest()})
        row = {"prompt_embeds": random.standard_normal(77 * 4096, dtype=np.float32)}
        row |= {"pooled_prompt_embeds": random.standard_normal(768, dtype=np.float32)}
        row |= {"text_ids": np.zeros(77 * 3, dtype=np.float32)}
        rows["flux"].append(row | {"image_hash": hashlib.sha256(pixels).hexdigest()})
    for name, table in rows.items():
        pandas.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    return folder


def _encoded(folder: Path) -> list[bytes]:
    """Pictures as PNG files in memory."""
    pipelines.write_images(folder / "pictures", captions=False)
    return [path.read_bytes() for path in sorted((folder / "pictures").glob("*.png"))]


def _write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.parent


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path.parent


# Name in the flags of a row -> what writes it.
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "images": write_captioned,
    "instances": write_named,
    "conditioned": write_conditioned,
    "masked": write_masked,
    "videos": write_videos,
    "animations": write_animations,
    "shards": write_shards,
    "preferences": write_preferences,
    "boxes": write_boxes,
    "embedded": write_embedded,
}
