"""Captions in text files beside the images, as sd-scripts has them: a.txt or a.caption for a.png."""

from __future__ import annotations

from .errors import DataError
from .items import Item
from .listing import File, Listing
from .metadata import read_text
from .reading import Reading


def caption_files(listing: Listing) -> dict[str, File]:
    """Caption files that lie beside an image of the same name, by that name without its ending.

    Raises:
        DataError: An image has a .txt and a .caption.
    """
    stems = {file.stem for file in listing.images}
    found: dict[str, File] = {}
    for file in listing.captions:
        if file.stem not in stems:
            continue
        if file.stem in found:
            names = [found[file.stem].name, file.name]
            raise DataError(f"{listing.root}: {names} are captions of the same image: keep one of them.")
        found[file.stem] = file
    return found


def items_of_captions(listing: Listing, texts: dict[str, File], reading: Reading) -> list[Item]:
    """All images, each with the text beside it; of several lines each is a caption of its own.

    Args:
        listing: Of the folder.
        texts: As `caption_files` gives them.
        reading: Gets notes.

    Raises:
        DataError: Images have no text, an empty one, or one that is not UTF-8.
    """
    items = []
    without = []
    several = 0
    for image in listing.images:
        file = texts.get(image.stem)
        lines = caption_lines(file) if file else []
        if file is None or not lines:
            without.append(image.name)
            continue
        several += len(lines) > 1
        items.append(Item(image, lines if len(lines) > 1 else lines[0], file.name))
    if without:
        raise DataError(
            f"{len(without)} of the {len(listing.images)} images of {listing.root} have no caption, for example "
            f"{without[:5]}: the text file beside an image, such as a.txt for a.png, is missing or empty. Write it, "
            "or remove the image."
        )
    endings = sorted({file.ending for file in texts.values()})
    reading.notes.append(f"captions are those of the {' and '.join(endings)} files beside the images")
    if several:
        reading.notes.append(f"{several} of the files have several lines: each line is a caption")
    return items


def caption_lines(file: File) -> list[str]:
    """The lines of a caption file that are not blank."""
    lines = [line.strip() for line in read_text(file.path, file.name).split("\n")]
    return [line for line in lines if line]
