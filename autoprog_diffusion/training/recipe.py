"""What a recipe says about itself; `run.run` does what is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from autoprog_diffusion.data.captioned import load_captioned_images

from .arguments import Arguments
from .build import make_loader
from .trainer import Task


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

# A word, several, or None for a switch.
FlagValue = str | tuple[str, ...] | None


class Recipe(ABC):
    """One way of fine-tuning: the methods are called in the order in which they stand here.

    Attributes:
        arguments: Type of its flags: `Arguments`, or a subclass with one more group.
        flags: Values of flags that the recipe changes; any flag on the command line wins.
        default_model: Folder of the pipeline that is trained where the command line names none.
        default_flags: Values of flags for the default model and data only.
    """

    arguments: type[Arguments] = Arguments
    flags: Mapping[str, FlagValue] = {}
    default_model: Path | None = None
    default_flags: Mapping[str, FlagValue] = {}

    @abstractmethod
    def load(self, args: Arguments) -> Any:
        """The pipeline, in float32; what never trains does not require gradient."""

    @abstractmethod
    def denoiser(self, pipeline: Any) -> nn.Module:
        """The model of the pipeline that is fine-tuned."""

    def resolution(self, pipeline: Any) -> int:
        """Side of the images that the pipeline was made for, in pixels."""
        return self.denoiser(pipeline).config.sample_size * pipeline.vae_scale_factor  # type: ignore[union-attr]

    def multiple(self, pipeline: Any) -> int:
        """What the side of an image must be a multiple of: the VAE's factor times the denoiser's patch."""
        return pipeline.vae_scale_factor

    def data(self, args: Arguments, pipeline: Any, resolution: int, accelerator: Accelerator) -> datasets.Dataset:
        """The training set; by default columns `image` and `text`."""
        del pipeline, accelerator
        data = args.data
        return load_captioned_images(
            train_data_dir=data.train_data_dir,
            dataset_name=data.dataset_name,
            dataset_config_name=data.dataset_config_name,
            image_column=data.image_column,
            caption_column=data.caption_column,
            max_train_samples=data.max_train_samples,
            resolution=resolution,
            cache_dir=args.model.cache_dir,
        )

    def loader(self, data: datasets.Dataset, args: Arguments, resolution: int) -> DataLoader:
        """Batches of row numbers, and of images where latents are not cached."""
        return make_loader(data, args, resolution)

    @abstractmethod
    def task(
        self, pipeline: Any, data: datasets.Dataset, args: Arguments, accelerator: Accelerator, resolution: int
    ) -> Task:
        """Batches to losses."""

    @abstractmethod
    def titles(self, args: Arguments, data: datasets.Dataset) -> tuple[str, ...]:
        """Titles of the pictures that are drawn before, during and after training: prompts or class names."""

    @abstractmethod
    def draw(self, pipeline: Any, args: Arguments, titles: Sequence[str], size: int) -> list[Image.Image]:
        """One picture per title with the pipeline as it is, `size` pixels wide, the same seeds each time."""

    def references(self, args: Arguments, titles: Sequence[str], size: int) -> list[tuple[str, Sequence[Image.Image]]]:
        """Rows of real pictures of the titles, to set beside the drawn ones; none by default."""
        del args, titles, size
        return []

    def save(self, pipeline: Any, output: Path) -> None:
        """Write the trained pipeline so that Diffusers alone loads it."""
        pipeline.save_pretrained(output)

    def model_name(self, args: Arguments) -> str:
        """Folder or Hub name of the pipeline to train."""
        return args.model.pretrained_model_name_or_path or str(self.default_model)

    def parse(self, argv: Sequence[str], description: str | None = None) -> Arguments:
        """The arguments of a command line."""
        return tyro.cli(self.arguments, args=self.with_defaults(argv), description=description)

    def with_defaults(self, argv: Sequence[str]) -> list[str]:
        """The flags, preceded by the recipe's own and the default model's: the last of a repeated flag wins."""
        named = any(flag.split("=")[0].replace("-", "_") == "__pretrained_model_name_or_path" for flag in argv)
        values = {**self.flags, **({} if named else self.default_flags)}
        words: list[str] = []
        for flag, value in values.items():
            words += [f"--{flag}", *((value,) if isinstance(value, str) else value or ())]
        return [*words, *argv]
