"""One run of a script: get ready, train, and write the results; a resumed run keeps its settings."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.errors import GrowthError, StateError

from .arguments import OutputArguments, flat
from .checkpoints import find_checkpoint
from .output import RUN_FILE, check_output_dir
from .report import write_report
from .trainer import Trainer


if TYPE_CHECKING:
    from accelerate import Accelerator

DATA_KEY = "data_report"  # of what the data holds, in the file of the run's settings
PHASES = ("getting ready", "training", "saving")
# Beside the flags of the output: they change where and how fast a run trains, not what.
FREE = ("dataloader_num_workers", "workers", "cache_dir", "gradient_checkpointing", "offload_ema")


class HasOutput(Protocol):
    """Arguments of any script."""

    @property
    def output(self) -> OutputArguments:
        """Output, checkpoints and validation."""
        ...


Args = TypeVar("Args", bound=HasOutput)
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


class Script(ABC, Generic[Args, AnyTrainer]):
    """One training script: its command line, its trainer and its results."""

    @abstractmethod
    def parse(self, argv: Sequence[str], description: str | None = None) -> Args:
        """The arguments of a command line.

        Raises:
            ConfigError: A value is not allowed.
        """

    @abstractmethod
    def make_accelerator(self, args: Args) -> Accelerator:
        """The run's accelerator."""

    @abstractmethod
    def get_ready(self, args: Args, accelerator: Accelerator) -> AnyTrainer:
        """Everything before the first step: data, model, growth, trainer."""

    def before(self, trainer: AnyTrainer) -> None:
        """Do on the main process what precedes the first step of a run that is not resumed."""

    @abstractmethod
    def save(self, trainer: AnyTrainer, output: Path) -> None:
        """Write the trained model, on the main process."""


def main(script: Script[Any, Any], argv: Sequence[str], description: str | None = None) -> None:
    """Run a script from a command line; an error of ours ends it with one line."""
    try:
        run(script, script.parse(argv, description))
    except GrowthError as error:
        sys.exit(f"error: {error}")


def run(script: Script[Args, AnyTrainer], args: Args) -> AnyTrainer:
    """Train, and leave the model, `growth.json`, `timeline.png` and a printed table.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    clock = [time.perf_counter()]
    trainer = ready(script, args)
    accelerator = trainer.accelerator
    output = Path(args.output.output_dir)
    clock.append(time.perf_counter())
    trainer.train()
    clock.append(time.perf_counter())
    trainer.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        script.save(trainer, output)
        clock.append(time.perf_counter())
        seconds = [later - earlier for earlier, later in pairwise(clock)]
        write_report(output, trainer.growth, trainer.metrics, dict(zip(PHASES, seconds)))
        print(f"the trained model, timeline.png and growth.json are in {output}/")
    # A launcher ends all ranks when one fails: none may leave, and fail doing so, while the main process still writes.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return trainer


def ready(script: Script[Args, AnyTrainer], args: Args) -> AnyTrainer:
    """The trainer before its first step, or where it is resumed.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    accelerator = script.make_accelerator(args)
    open_output(args, accelerator)
    trainer = script.get_ready(args, accelerator)
    begin(trainer, args)
    if accelerator.is_main_process and trainer.step == 0:
        script.before(trainer)
    return trainer


def open_output(args: HasOutput, accelerator: Accelerator) -> None:
    """Refuse a folder that cannot be used, or whose run had other settings, before anything is loaded.

    Raises:
        OutputError: It is not usable, or holds a run that is neither resumed nor overwritten.
        StateError: The checkpoint to resume does not exist, or its run had other settings.
    """
    if accelerator.is_main_process:
        output = args.output
        folder = Path(output.output_dir)
        wanted = output.resume_from_checkpoint
        check_output_dir(folder, resume=wanted is not None, overwrite=output.overwrite_output_dir)
        checkpoint = find_checkpoint(folder / "checkpoints", wanted)
        if checkpoint is not None:
            # The checkpoint may be another folder's: its run is two folders up.
            check_same_run(checkpoint.parents[1] / RUN_FILE, args)
    accelerator.wait_for_everyone()


def check_same_run(file: Path, args: HasOutput) -> None:
    """Refuse to resume under settings that change what is trained; a run without a file of settings passes.

    Args:
        file: Settings of the run to resume.
        args: Today's arguments.

    Raises:
        StateError: The message lists all flags that differ, with both values.
    """
    if not file.exists():
        return
    earlier = flat(json.loads(file.read_text(encoding="utf-8")))
    free = {*vars(args.output), *FREE}
    differing = []
    for name, value in flat(json.loads(settings_text(args))).items():
        before = earlier.get(name, value)  # an older version of the script may not have had the flag
        if value != before and name not in free:
            differing.append(f"--{name} was {before!r}, now {value!r}")
    if differing:
        raise StateError(
            f"the run in {file.parent} had other settings: {'; '.join(differing)}. Resume with its own flags, or "
            "choose another --output_dir."
        )


def begin(trainer: Trainer, args: HasOutput) -> None:
    """Load the checkpoint to resume, if one is asked for; start the trackers; note the settings of a new run."""
    accelerator = trainer.accelerator
    output = args.output
    if output.resume_from_checkpoint and not trainer.resume(output.resume_from_checkpoint):
        accelerator.print("no complete checkpoint yet: starting from the beginning.")
    if accelerator.is_main_process:
        settings = {key: str(value) for key, value in trainer.growth.config.to_dict().items()}
        accelerator.init_trackers(output.tracker_project_name, config=settings)  # trackers take no lists
        folder = Path(output.output_dir)
        trainer.growth.plan.save(folder / "growth_plan.json")
        if trainer.step == 0 or not (folder / RUN_FILE).exists():
            write_text_atomically(folder / RUN_FILE, settings_text(args) + "\n")
        if trainer.data_report is not None:
            note_data(folder / RUN_FILE, trainer.data_report)


def note_data(file: Path, report: DataReport) -> None:
    """Write what the data holds, and what of it is left out, into the file of the run's settings."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    # The last group: those before it are flags.
    settings.pop(DATA_KEY, None)
    settings[DATA_KEY] = report.to_dict()
    write_text_atomically(file, json.dumps(settings, indent=2) + "\n")


def settings_text(args: HasOutput) -> str:
    """The arguments as JSON: groups of flags with their values."""
    return json.dumps(dataclasses.asdict(args), indent=2)  # type: ignore[call-overload]
