"""Which images of a recipe are held out: a folder's, those that the default data holds out, or a share of the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprog_diffusion.data.damaged import usable_images
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.evaluation.overlap import count_across
from autoprog_diffusion.evaluation.split import choose_held_out

from .arguments import flat
from .checkpoints import find_checkpoint
from .history import starts_before
from .recipe_arguments import Arguments


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

LEAST_VALIDATION = 2  # images: the noise of one cannot be told


def cache_folder(args: Arguments) -> Path:
    """Where latents and thumbnails are kept."""
    return Path(args.output.output_dir) / "cache"


def holds_out(args: Arguments, accelerator: Accelerator) -> bool:
    """Whether images are held out; a run that began without is resumed without."""
    if not args.evaluation.held_out:
        return False
    checkpoints = Path(args.output.output_dir) / "checkpoints"
    checkpoint = find_checkpoint(checkpoints, args.output.resume_from_checkpoint)
    starts = [] if checkpoint is None else starts_before(checkpoint)
    if all("held_out" in flat(start["settings"]) for start in starts):
        return True
    accelerator.print("this run began with a version that held no images out: it goes on without a held-out loss.")
    return False


def take_validation(given: Dataset | None, data: Dataset, args: Arguments, accelerator: Accelerator) -> Dataset | None:
    """Images that do not come from the training data, checked; None where there are none.

    Args:
        given: As they were read.
        data: That is trained on.
        args: Of the recipe.
        accelerator: Of the run.

    Raises:
        DataError: There are too few.
    """
    folder = args.evaluation.validation_data_dir
    if given is None or folder is None:
        return given
    given, _ = usable_images(given, args.data.corrupt, accelerator)
    if len(given) < LEAST_VALIDATION:
        raise DataError(
            f"--validation_data_dir {folder} has {len(given)} images: give {LEAST_VALIDATION} or more, or remove the "
            "flag."
        )
    found = count_across(given, data, folder=cache_folder(args), accelerator=accelerator)
    if found is not None:
        accelerator.print(f"note: {found}.")
    return given


def note_held_out(given: Dataset, args: Arguments, report: DataReport) -> None:
    """Say how many images the default data holds out by itself; those of a folder are no part of what was found."""
    if args.evaluation.validation_data_dir is None:
        report.readings[0].notes.append(f"{len(given)} other images of it are held out, for the held-out loss")


def take_share(data: Dataset, args: Arguments, report: DataReport, accelerator: Accelerator) -> tuple[Dataset, Any]:
    """The data that is trained on, and images that are held out of it; None where it is too small.

    Args:
        data: Column `image`, and `text` or `label`.
        args: Of the recipe.
        report: Counts those that are held out, and gets the notes.
        accelerator: Of the run.
    """
    split = choose_held_out(
        data,
        args.evaluation.held_out_share,
        seed=args.train.seed,
        folder=cache_folder(args),
        accelerator=accelerator,
    )
    report.readings[-1].notes += split.notes
    if not split.held_out:
        return data, None
    report.leave_out_rows("held out, for the held-out loss", split.held_out)
    return split.sides(data)
