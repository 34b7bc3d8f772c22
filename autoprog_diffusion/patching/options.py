"""Choices about the lines that are added: the schedule, the average, the comments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .parts import Training


Schedule: TypeAlias = Literal["late", "even"]
AverageChoice: TypeAlias = Literal["auto", "on", "off"]
# Names that the lines of the average bring into the script.
AVERAGE_NAMES = ("average", "PowerAverage")


@dataclass(frozen=True)
class Options:
    """How the lines are written.

    Attributes:
        schedule: `late` is what measured best for models of a kind, `GrowthConfig.for_model`; `even` the four even
            stages of `GrowthConfig()`.
        average: Whether a power-function average of the weights becomes the result; `auto` for where the script has no
            average of its own, and nothing else stands against it.
        comments: Whether every line says what it does.
    """

    schedule: Schedule = "late"
    average: AverageChoice = "auto"
    comments: bool = True


DEFAULT = Options()


def config_of(training: Training, options: Options) -> str:
    """The configuration as code."""
    kept = ["stage_embedding=False"] if training.no_embedding else []
    if options.schedule == "even":
        return f"GrowthConfig({', '.join(kept)})"
    return f"GrowthConfig.for_model({', '.join([training.denoiser.name, *kept])})"


def takes_average(training: Training, options: Options) -> bool:
    """Whether the average is written.

    Raises:
        PatchError: It was asked for, and something stands against it.
    """
    if options.average == "off":
        return False
    found = against_average(training)
    if found is not None and options.average == "on":
        line, reason = found
        training.source.refuse_line(
            line,
            f"--average on: {reason}.",
        )
    return found is None


def against_average(training: Training) -> tuple[int, str] | None:
    """Line and reason that stand against an average, or None."""
    source = training.source
    for own in training.averages:
        return source.line(own.argument), f"the script has an average of its own, {own.name}, that becomes the result"
    if training.no_embedding and not training.denoiser.named:
        return source.line(training.loop.outermost), training.no_embedding
    used = source.name_used(AVERAGE_NAMES)
    if used is not None:
        return source.line(used), f"the name {source.code(used)} is used already, rename it"
    return None


def notes_of(training: Training, options: Options) -> tuple[str, ...]:
    """What a user may want to know or change beside the added lines."""
    if not takes_average(training, options):
        return training.notes
    return (
        *training.notes,
        "the average is what is saved, in place of the last weights; it wants a learning rate that is constant after "
        'warm-up, and takes 4 bytes for every parameter that trains: PowerAverage(..., device="cpu") keeps them in '
        "CPU memory, --average off leaves it out.",
    )
