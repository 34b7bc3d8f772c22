"""The five examples: the data and the model that each needs, and how its picture is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gallery_data as data

from autoprog_diffusion.files import remove


HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "gallery"  # where run files have their data and their output
IMAGES = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Example:
    """One run of one recipe.

    Attributes:
        name: Of its run file, its output folder and its picture.
        title: For the table.
        folder: Of its data, below `runs/gallery/data`.
        make: Writes that data into a folder that is not there yet.
        shows: Folder below its data with the real pictures that are set under those of the run; None where the run
            sets some there itself.
        model: Writes the pipeline that it starts from into a folder; None for one that comes with the recipes.
        captions: Whether these are the pictures of prompts, by their captions, and not one of every class.
    """

    name: str
    title: str
    folder: str
    make: Callable[[Path], None]
    shows: str | None = None
    model: Callable[[Path], None] | None = None
    captions: bool = False

    @property
    def run_file(self) -> Path:
        """Its flags."""
        return HERE / f"{self.name}.yaml"

    @property
    def output(self) -> Path:
        """What its run leaves."""
        return RUNS / self.name

    @property
    def data(self) -> Path:
        """Its data."""
        return RUNS / "data" / self.folder

    @property
    def image(self) -> Path:
        """The picture of the page."""
        return IMAGES / f"gallery_{self.name}.png"

    def prepare(self) -> None:
        """Make what is missing of data and model."""
        once(self.make, self.data)
        if self.model is not None:
            once(self.model, RUNS / "models" / self.name)


def once(make: Callable[[Path], None], folder: Path) -> None:
    """Make a folder that is whole or not there."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    if unfinished.exists():
        remove(unfinished)
    make(unfinished)
    unfinished.rename(folder)


def flux(folder: Path) -> None:
    """The small Flux pipeline; its module is loaded where it is needed."""
    import flux as tiny_flux

    tiny_flux.distil(folder)


EXAMPLES = (
    Example(
        name="style",
        title="a style",
        folder="line_art",
        make=data.line_art,
        shows="held_out",
        captions=True,
    ),
    Example(
        name="subject",
        title="a subject",
        folder="blue_mouse",
        make=data.blue_mouse,
    ),
    Example(
        name="classes",
        title="new classes",
        folder="clothes",
        make=data.clothes,
    ),
    Example(
        name="lora",
        title="a LoRA of a Flux",
        folder="line_art",
        make=data.line_art,
        shows="held_out",
        model=flux,
        captions=True,
    ),
    Example(
        name="vit",
        title="a vision transformer",
        folder="clothes",
        make=data.clothes,
        shows="train",
    ),
)
BY_NAME = {example.name: example for example in EXAMPLES}
