"""One script that is run, and the flags that many have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """What is replaced in a script and its neighbours before any run, patched or not.

    Attributes:
        old: Text that must be there.
        new: What stands there instead; `{pipeline}` and the like are folders, as in the flags.
        why: For the table: what keeps the script from running here as it is.
    """

    old: str
    new: str
    why: str


@dataclass(frozen=True)
class Row:
    """One script that is run.

    Attributes:
        path: Below `examples/`.
        build: Makes the tiny pipeline it trains.
        flags: What it is run with beside the output folder, accumulation and checkpoints; `{pipeline}` is the folder
            of the tiny pipeline, `{images}` and the like one of `data_folders.FOLDERS`.
        resumes: Whether it has the flags of checkpoints.
        changes: What is replaced in it.
        stand_ins: Packages that it imports, and that a file of `stand_ins` is there for where they are missing.
    """

    path: str
    build: Callable[[], Any]
    flags: tuple[str, ...]
    resumes: bool = True
    changes: tuple[Change, ...] = ()
    stand_ins: tuple[str, ...] = ()


STEPS = ("--resolution", "16", "--max_train_steps", "4", "--lr_warmup_steps", "0", "--lr_scheduler", "constant",
         "--seed", "0", "--train_batch_size", "2", "--learning_rate", "1e-2")  # fmt: skip
MODEL = ("--pretrained_model_name_or_path", "{pipeline}")
LATENT = (*MODEL, *STEPS)
IMAGES = (*LATENT, "--train_data_dir", "{images}")
INSTANCES = (*LATENT, "--instance_data_dir", "{instances}", "--instance_prompt", "a picture")
SHORT = (*INSTANCES, "--max_sequence_length", "16")
PAIRS = (*LATENT, "--dataset_name", "{conditioned}", "--image_column", "image", "--cond_image_column",
         "conditioning_image", "--caption_column", "text", "--instance_prompt", "a picture", "--max_sequence_length",
         "16")  # fmt: skip
EDITED = (*LATENT, "--dataset_name", "{conditioned}", "--original_image_column", "input_image")
CONDITIONED = (*LATENT, "--dataset_name", "{conditioned}", "--image_column", "image", "--caption_column", "text",
               "--conditioning_image_column", "conditioning_image")  # fmt: skip
