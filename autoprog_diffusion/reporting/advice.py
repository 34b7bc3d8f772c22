"""Advice after a run: rules that look at what it measured, and say what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from autoprog_diffusion.command_line import launch_words

from .held_out import HeldOut
from .markup import Child, element
from .run_folder import Run
from .words import count, duration, loss, percent, ratio


MANY_LEFT_OUT = 0.2  # share of the data
CLEAR = 2.0  # standard errors that a difference of losses must have; as in `evaluation.result`


def advice(run: Run) -> list[Child]:
    """Sentences, those that change most first; at least one."""
    found: list[Child] = [*_if_open(run), *_on_held_out(run), *_on_saving(run), *_on_data(run)]
    return found or ["Nothing stands out. Look at the pictures, and compare with a run of other settings."]


def _if_open(run: Run) -> Iterator[Child]:
    """How to go on with a run that has not ended."""
    if run.ended:
        return
    if run.measured is None:
        yield "Wait for its first checkpoint, or start it again: --checkpointing_steps says how often it writes one."
        return
    yield ["If it was cut off, go on with it: ", element("code", resume_command(run))]


def _on_held_out(run: Run) -> Iterator[str]:
    held_out = run.held_out
    if held_out is None or not held_out.evaluations:
        if not run.validations:
            yield (
                "No held-out loss was measured, so this report cannot say which step was the best one. "
                "docs/held_out.md says how to hold images out."
            )
        return
    if held_out.best is None:
        return
    best_step, best_loss = held_out.best
    first = held_out.evaluations[0]
    last = held_out.evaluations[-1]
    if first.step == 0 and first.loss < best_loss:
        yield (
            f"Training never brought the held-out loss below that of the model it began with, {loss(first.loss)}: "
            "lower --learning_rate, or look at the captions."
        )
    elif clearly_above(last.loss, best_loss, held_out):
        yield from _on_overtraining(run, held_out, best_step)
    elif run.ended and best_step == last.step and held_out.stopped is None and _still_falls(held_out):
        yield (
            f"The held-out loss still fell at the end: train longer, with --max_train_steps {2 * run.steps} "
            "--resume_from_checkpoint latest."
        )


def _on_overtraining(run: Run, held_out: HeldOut, best_step: int) -> Iterator[str]:
    """What to do where the steps after the best one made the model worse."""
    last = held_out.evaluations[-1]
    wasted = sum(run.rows.get("seconds", [])[best_step:])
    cost = f", which took {duration(wasted)}," if wasted else ""
    yield (
        f"The held-out loss was lowest at step {best_step:,} and is clearly higher at step {last.step:,}: the steps "
        f"between{cost} did not help. Train --max_train_steps {best_step}, or let --stop_patience 3 end the run."
    )
    if run.ended:
        exported = run.start.settings.get("export") == "best"
        yield "The saved model has the best weights." if exported else "The saved model has the last weights."


def clearly_above(value: float, reference: float, held_out: HeldOut) -> bool:
    """Whether a loss is above another by more than twice the noise of the evaluations."""
    noises = [entry.noise for entry in held_out.evaluations if math.isfinite(entry.noise)]
    return value > reference + CLEAR * max(noises, default=0.0)


def _still_falls(held_out: HeldOut) -> bool:
    """Whether the last evaluation is clearly below the one before it."""
    if len(held_out.evaluations) < 2:
        return False
    before, last = held_out.evaluations[-2:]
    return clearly_above(before.loss, last.loss, held_out)


def was_slowed(run: Run) -> bool:
    """Whether a run on a CPU had less than half of one: other work slowed it, and its wall times say little."""
    on_cpu = run.device in ("", "cpu")
    return on_cpu and run.total_cpu_seconds < 0.5 * run.total_seconds


def _on_saving(run: Run) -> Iterator[str]:
    time = run.saving.get("time")
    if was_slowed(run):
        share = percent(ratio(run.total_cpu_seconds, run.total_seconds))
        yield (
            f"The machine was busy with other work: CPU time is {share} of wall time. Compare this run with others by "
            "FLOPs or CPU time, not by wall time."
        )
    elif time is not None and time < 1:
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
    return shlex.join([*launch_words(words, run.start.processes), "--resume_from_checkpoint", "latest"])
