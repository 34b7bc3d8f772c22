"""One run of a script: get ready, train, and write the results; a resumed run keeps its settings."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from autoprog_diffusion.command_line import Flag, flags_of
from autoprog_diffusion.files import RUN_FILE, is_disk_full
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.growth.values import JSON

from .arguments import OutputArguments, flat
from .checkpoints import TrainingError, find_checkpoint
from .ends import Ends, Stopped, is_first_process, resume_command
from .flag_checks import idle_flags
from .flag_classes import PLACES
from .history import (
    applied_line,
    check_same_data,
    check_same_run,
    describe_model,
    describe_start,
    keep_in_checkpoints,
    note_start,
    read_starts,
    starts_before,
    versions,
)
from .output import check_inputs, check_output_dir
from .report import write_report
from .run_file import with_run_file
from .run_file_text import run_file_text, write_run_file
from .saved_metrics import keep_measurements
from .sharded_state import holds_shards
from .threads import take_threads
from .tracking import hyper_parameters
from .trainer import Trainer


if TYPE_CHECKING:
    from accelerate import Accelerator

ABOUT_CONFIG = (
    "--config FILE reads flags from a file, such as the run.yaml that every run leaves; flags of the command line win."
)
PHASES = ("getting ready", "training", "saving")


class HasOutput(Protocol):
    """Arguments of any script."""

    @property
    def output(self) -> OutputArguments:
        """Output, checkpoints and validation."""
        ...


Args = TypeVar("Args", bound=HasOutput)
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


class Script(ABC, Generic[Args, AnyTrainer]):
    """One training script: its command line, its trainer and its results.

    Attributes:
        name: Of the recipe, on the command line and in its files; nothing where it has none.
        own_flags: Flags that its class of arguments does not hold.
    """

    name: ClassVar[str] = ""
    own_flags: ClassVar[tuple[Flag, ...]] = ()

    @abstractmethod
    def arguments(self) -> type:
        """The dataclass of its arguments."""

    def flags(self) -> dict[str, Flag]:
        """Name -> flag, of all that the script has."""
        return {flag.name: flag for flag in self.own_flags} | flags_of(self.arguments())

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
        """Do what precedes the first step of a run that is not resumed; as `save`."""

    @abstractmethod
    def save(self, trainer: AnyTrainer, output: Path) -> None:
        """Write the trained model, on the main process; with `trainer.together` all call it, and one writes."""


def main(script: Script[Any, Any], argv: Sequence[str], description: str | None = None) -> None:
    """Run a script from a command line; an error of ours, or a full disk, ends it with one line."""
    try:
        words = with_run_file(argv, script.name, script.flags())
        run(script, script.parse(words, described(description)), words)
    except GrowthError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(f"error: the disk is full: {error}. Free space, and go on with: {resume_command()}")


def described(description: str | None) -> str:
    """The description of a script, with what its class of arguments does not hold."""
    return f"{description or ''}\n\n{ABOUT_CONFIG}"


def run(script: Script[Args, AnyTrainer], args: Args, words: Sequence[str] | None = None) -> AnyTrainer:
    """Train, and leave the model, `growth.json`, `timeline.png` and a printed table.

    Args:
        script: To run.
        args: Its arguments.
        words: Its command line, which is written as `run.yaml`; nothing is written without it.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
        Stopped: A signal ended the run; a checkpoint was written if training had begun.
    """
    with Ends() as ends:
        clock = [time.perf_counter()]
        try:
            trainer = ready(script, args, words)
        except Stopped as stopped:
            say_nothing_was_trained(stopped)
            raise
        trainer.ends = ends
        clock.append(time.perf_counter())
        try:
            trainer.train()
        except Stopped:
            trainer.accelerator.print(f"go on with: {resume_command()}")
            trainer.accelerator.end_training()
            raise
        clock.append(time.perf_counter())
        # What follows changes the weights: a failure in it must not cost the training.
        trainer.checkpoint()
        save_results(script, trainer, args, clock)
        # A launcher ends all ranks when one fails: none may leave, and fail doing so, while the main process writes.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    return trainer


def save_results(script: Script[Args, AnyTrainer], trainer: AnyTrainer, args: Args, clock: list[float]) -> None:
    """Write the trained model and the report, on the main process.

    Args:
        script: How the model is saved.
        trainer: After the last step.
        args: Of the run.
        clock: Times at which the phases of the run began.

    Raises:
        TrainingError: They cannot be written; nothing is lost, since the checkpoint of the last step is there.
    """
    accelerator = trainer.accelerator
    output = Path(args.output.output_dir)
    if trainer.compiled is not None:
        trainer.compiled.stop()
    trainer.finish()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        if trainer.together:
            script.save(trainer, output)
        return
    try:
        script.save(trainer, output)
        clock.append(time.perf_counter())
        seconds = [later - earlier for earlier, later in pairwise(clock)]
        write_report(output, trainer.growth, trainer.metrics, dict(zip(PHASES, seconds)))
        print(f"trained with {trainer.threads}.")
        if trainer.compiled is not None:
            print(f"{trainer.compiled}.")
        for sentence in trainer.closing_words():
            print(sentence)
    except Exception as error:
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        raise TrainingError(
            f"the trained model cannot be written to {output}: {error}. Nothing is lost: "
            f"{find_checkpoint(trainer.root, 'latest')} holds it. Free space, and run: {resume_command()}"
        ) from error
    print(f"the trained model, timeline.png and growth.json are in {output}/")


def say_nothing_was_trained(stopped: Stopped) -> None:
    """Tell the user, on the first process, that a signal came before the first step."""
    if is_first_process():
        print(f"stopped by {stopped.name} before the first step: run the same command again.", flush=True)


def ready(script: Script[Args, AnyTrainer], args: Args, words: Sequence[str] | None = None) -> AnyTrainer:
    """The trainer before its first step, or where it is resumed; the arguments are those of `run`.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    accelerator = script.make_accelerator(args)
    for sentence in idle_flags_of(args):
        accelerator.print(sentence)
    open_output(args, accelerator)
    threads = take_threads(args.output.cpu_threads, accelerator, starts_to_resume(args))
    trainer = script.get_ready(args, accelerator)
    trainer.threads = threads
    begin(trainer, args)
    if words is not None and accelerator.is_main_process:
        leave_run_file(script, trainer, args, words)
    if (accelerator.is_main_process or trainer.together) and trainer.step == 0:
        script.before(trainer)
    return trainer


def leave_run_file(script: Script[Args, Any], trainer: Trainer, args: Args, words: Sequence[str]) -> None:
    """Write `run.yaml`, with what the machine chose where no flag did.

    Args:
        script: That runs.
        trainer: Before its first step.
        args: Of the run.
        words: Its command line.
    """
    accelerator = trainer.accelerator
    chosen: dict[str, Any] = {}
    if accelerator.device.type == "cpu":
        chosen["cpu_threads"] = trainer.threads.count
    if accelerator.mixed_precision != "no":
        chosen["mixed_precision"] = accelerator.mixed_precision
    text = run_file_text(
        script.name,
        words,
        script.flags(),
        chosen=chosen,
        versions=versions(),
        num_processes=accelerator.num_processes,
    )
    write_run_file(Path(args.output.output_dir), text)


def idle_flags_of(args: Any) -> list[str]:
    """A sentence on every flag of the command line that has no effect beside the others."""
    values = asdict(args)
    return idle_flags(set(args.given), flat(values), set(values.get("growth", {})))


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
        values = flat(asdict(args))  # type: ignore[call-overload]
        check_inputs(folder, {name: values.get(name) for name in PLACES}, overwrite=output.overwrite_output_dir)
        check_output_dir(folder, resume=wanted is not None, overwrite=output.overwrite_output_dir)
        checkpoint = find_checkpoint(folder / "checkpoints", wanted, report=True)
        if checkpoint is not None:
            processes = None if holds_shards(checkpoint) else accelerator.num_processes
            precision = accelerator.mixed_precision
            check_same_run(starts_before(checkpoint), args, processes, checkpoint.parents[1], precision=precision)
    accelerator.wait_for_everyone()


def starts_to_resume(args: HasOutput) -> list[JSON]:
    """The starts that led to the checkpoint that is resumed; none where none is."""
    output = args.output
    checkpoint = find_checkpoint(Path(output.output_dir) / "checkpoints", output.resume_from_checkpoint)
    return [] if checkpoint is None else starts_before(checkpoint)


def begin(trainer: Trainer, args: HasOutput) -> None:
    """Load the checkpoint to resume, if one is asked for; start the trackers; note this start in `run.json`.

    Raises:
        StateError: The checkpoint does not fit this run, or the data changed.
    """
    accelerator = trainer.accelerator
    output = args.output
    folder = Path(output.output_dir)
    file = folder / RUN_FILE
    checkpoint = find_checkpoint(trainer.root, output.resume_from_checkpoint)
    before = starts_before(checkpoint) if checkpoint else []
    check_same_data(before, trainer.identity)
    if output.resume_from_checkpoint:
        if trainer.resume(output.resume_from_checkpoint):
            accelerator.print(f"resumed from {checkpoint}: step {trainer.step} of {trainer.max_steps} is done.")
        else:
            accelerator.print("no complete checkpoint yet: starting from the beginning.")
    line = applied_line(before, args)
    if line is not None:
        accelerator.print(line)
    if accelerator.is_main_process:
        accelerator.init_trackers(output.tracker_project_name, config=hyper_parameters(trainer.growth, args))
        trainer.growth.plan.save(folder / "growth_plan.json")
        # A new folder takes over the history of the run that it goes on with.
        known = read_starts(file) or before
        report = None if trainer.data_report is None else trainer.data_report.to_dict()
        note_start(file, known if output.resume_from_checkpoint else [], start_of(trainer, args), report)
    keep_in_checkpoints(accelerator, file)
    keep_measurements(accelerator, trainer.growth, trainer.metrics)


def start_of(trainer: Trainer, args: HasOutput) -> JSON:
    """The entry of this start in `run.json`."""
    return describe_start(
        args,
        step=trainer.step,
        steps=trainer.max_steps,
        num_processes=trainer.accelerator.num_processes,
        identity=trainer.identity,
        model=describe_model(trainer.bare),
        cpu_threads=trainer.threads.count,
        precision=trainer.accelerator.mixed_precision,
    )
