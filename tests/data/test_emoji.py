from __future__ import annotations

import re

import datasets
import numpy as np
import pytest

from autoprog_diffusion.data.emoji import (
    SUBCATEGORIES,
    emoji_classes,
    emoji_dataset,
    emoji_in_both_styles,
    emoji_labels,
    is_held_out,
)
from autoprog_diffusion.growth import ConfigError


@pytest.fixture(scope="module")
def styles() -> dict[str, datasets.Dataset]:
    return {"twemoji": emoji_dataset("twemoji", size=16), "openmoji": emoji_dataset("openmoji", size=16)}


def test_both_styles_show_the_same_emoji_differently(styles: dict[str, datasets.Dataset]) -> None:
    ours, theirs = styles["openmoji"], styles["twemoji"]
    assert len(ours) > 1800
    for column in ("codepoints", "text", "category"):
        assert ours[column][:] == theirs[column][:]
    same = [np.array_equal(ours[index]["image"], theirs[index]["image"]) for index in range(0, len(ours), 40)]
    assert sum(same) <= 1


def test_captions_are_unique_lower_case_ascii(styles: dict[str, datasets.Dataset]) -> None:
    captions = styles["openmoji"]["text"][:]
    assert len(set(captions)) == len(captions)
    assert [text for text in captions if not re.fullmatch(r"[a-z0-9!\- ]+", text) or text != text.strip()] == []
    assert {"grinning face", "red heart", "airplane"} <= set(captions)


def test_images_are_rgb_of_the_size_on_white(styles: dict[str, datasets.Dataset]) -> None:
    for row in styles["openmoji"].select(range(0, 1800, 100)):
        assert (row["image"].mode, row["image"].size) == ("RGB", (16, 16))
    corners = [np.asarray(row["image"])[0, 0].min() for row in styles["openmoji"].select(range(100))]
    assert np.median(corners) == 255


def test_splits_are_disjoint_and_cover_all(styles: dict[str, datasets.Dataset]) -> None:
    split = {name: emoji_dataset("openmoji", size=4, split=name)["codepoints"][:] for name in ("train", "held_out")}
    together = split["train"] + split["held_out"]
    assert len(set(together)) == len(together)
    assert set(together) == set(styles["openmoji"]["codepoints"][:])
    assert 0.03 < len(split["held_out"]) / len(together) < 0.07
    order = {name: index for index, name in enumerate(styles["openmoji"]["codepoints"][:])}
    assert split["held_out"] == sorted(split["held_out"], key=order.__getitem__)


BAD_ARGUMENTS = [
    ({"style": "noto"}, "style must be one of .*'noto'"),
    ({"style": "openmoji", "split": "test"}, "split must be one of .*'test'"),
    ({"style": "openmoji", "size": 0}, "size must be an integer from 1 to 1024"),
    ({"style": "openmoji", "size": 1025}, "1025"),
    ({"style": "openmoji", "size": True}, "True"),
    ({"style": "openmoji", "size": 16.0}, "16.0"),
]


def test_bad_arguments_are_refused() -> None:
    for arguments, message in BAD_ARGUMENTS:
        with pytest.raises(ValueError, match=message):
            emoji_dataset(**arguments)


def test_emoji_labels_cover_every_emoji_and_split_by_codepoint() -> None:
    labels = emoji_labels()
    assert set(labels.values()) == set(range(len(SUBCATEGORIES)))
    subcategories = [name for names in SUBCATEGORIES.values() for name in names]
    assert len(subcategories) == len(set(subcategories))
    held = [point for point in labels if is_held_out(point)]
    assert 0.15 < len(held) / len(labels) < 0.25
    counts = np.bincount([label for point, label in labels.items() if not is_held_out(point)])
    assert counts.min() >= 30  # per style


def test_the_default_data_holds_both_styles_of_a_codepoint_on_one_side() -> None:
    train, val = emoji_in_both_styles(8)
    assert len(train) + len(val) == 2 * 1898
    assert len(val) % 2 == 0
    assert 0.15 < len(val) / (len(train) + len(val)) < 0.25


def test_groups_of_emoji_are_two() -> None:
    with pytest.raises(ConfigError, match="group must be one of"):
        emoji_classes("openmoji", "old", size=8)  # type: ignore[arg-type]
