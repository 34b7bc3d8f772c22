"""What to do after a run: rules that look at what it measured."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from .held_out import HeldOut
from .run_folder import Run
from .words import count, duration, loss, percent, ratio


MANY_LEFT_OUT = 0.2  # share of the data


def advice(run: Run) -> list[str]:
    """Sentences, those that change most first; at least one."""
    found = [*_if_open(run), *_on_held_out(run), *_on_saving(run), *_on_data(run)]
    return found or ["Nothing stands out. Look at the pictures, and compare with a run of other settings."]


def _if_open(run: Run) -> Iterator[str]:
    """How to go on with a run that has not ended."""
    if run.ended:
        return
    if run.measured is None:
        yield "Wait for its first checkpoint, or start it again: --checkpointing_steps says how often it writes one."
        return
    yield f"If it was cut off, go on with it: {resume_command(run)}"


def _on_held_out(run: Run) -> Iterator[str]:
    held_out = run.held_out
    if held_out is None or not held_out.evaluations:
        if not run.validations:
            yield (
                "No held-out loss was measured, so this report cannot say which step was the best one: "
                "see docs/held_out.md."
            )
        return
    if held_out.best is None:
        return
    best_step, best_loss = held_out.best
    last = held_out.evaluations[-1]
    if not clearly_above(last.loss, best_loss, held_out):
        if run.ended and best_step == last.step and held_out.stopped is None and _still_falls(held_out):
            yield (
                f"The held-out loss still fell at the end: train longer, --max_train_steps {2 * run.steps} "
                "--resume_from_checkpoint latest."
            )
        return
    wasted = _seconds_after(run, best_step)
    cost = f", which took {duration(wasted)}" if wasted else ""
    yield (
        f"The held-out loss was best at step {best_step:,} ({loss(best_loss)}) and {loss(last.loss)} at step "
        f"{last.step:,}: the steps after it{cost} did not help. Use the best weights, or train "
        f"--max_train_steps {best_step}."
    )


def clearly_above(value: float, reference: float, held_out: HeldOut) -> bool:
    """Whether a loss is above another by more than twice the noise of the evaluations."""
    noises = [entry.noise for entry in held_out.evaluations if entry.noise is not None]
    noise = max((value for value in noises if math.isfinite(value)), default=0.0)
    return value > reference + 2 * noise


def _still_falls(held_out: HeldOut) -> bool:
    """Whether the last evaluation is clearly below the one before it."""
    if len(held_out.evaluations) < 2:
        return False
    before, last = held_out.evaluations[-2:]
    return clearly_above(before.loss, last.loss, held_out)


def _seconds_after(run: Run, step: int) -> float:
    return sum(run.rows.get("seconds", [])[step:])


def _on_saving(run: Run) -> Iterator[str]:
    time = run.saving.get("time")
    if time is not None and time < 1:
        yield (
            f"The stages did not pay in time: as many steps of full training would have taken "
            f"{percent(time)} of the time. Short runs pay for getting ready; else try --growth off, or fewer stages."
        )


def _on_data(run: Run) -> Iterator[str]:
    for source in run.data:
        lost = sum(number for reason, number in source.left_out.items() if not _meant(reason))
        share = ratio(lost, source.found)
        if share is not None and share > MANY_LEFT_OUT:
            yield (
                f"{count(lost, 'file')} of {source.source} were left out, {percent(share)} of what was found: "
                "the data report below says why."
            )


def _meant(reason: str) -> bool:
    """Whether files were left out because a flag asked for it."""
    return reason.startswith(("beyond", "held out"))


def resume_command(run: Run) -> str:
    """The command of the last start, with the flag that goes on."""
    words = [word for word in run.start.command if not word.startswith("--resume_from_checkpoint=")]
    if "--resume_from_checkpoint" in words:
        place = words.index("--resume_from_checkpoint")
        del words[place : place + 2]
    launcher = "accelerate launch" if run.start.processes == 1 else f"torchrun --nproc_per_node {run.start.processes}"
    return f"{launcher} {shlex.join([*words, '--resume_from_checkpoint', 'latest'])}"
