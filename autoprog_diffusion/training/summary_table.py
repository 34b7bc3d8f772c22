"""The table that ends a run: one row per stage and search, and what the run saved in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoprog_diffusion.growth.memory import StageMemory
from autoprog_diffusion.stage_summary import StageSummary

from .console_table import print_table
from .metrics import Metrics, full_stage, saving
from .prediction import prediction_sentence


def print_summary(metrics: Metrics, num_blocks: int, seconds: dict[str, float]) -> None:
    """Print one row per stage and search, the saving against full training, and the accuracy if it was measured."""
    summaries = metrics.summaries()
    full = full_stage(summaries, num_blocks)
    rows = [
        {
            "stage": f"{row.stage + 1}{' search' * row.searching}",
            "steps": f"{row.steps}",
            "blocks": f"{row.blocks:.3g}/{num_blocks}",
            "trains": f"{row.trainable:.0%}",
            "pixels": f"{row.resolution:.4g}",
            "loss": f"{row.loss:.4f}",
            "step": milliseconds(row.step_seconds),
            "of full": share(row.step_seconds, full and full.step_seconds),
            "FLOPs of full": share(row.flops, full and full.flops),
            "memory": f"{row.memory / 2**20:,.0f} MiB",
        }
        for row in summaries
    ]
    print_table("progressive training, stage by stage", rows)
    print(saving_sentence(summaries, num_blocks))
    for result in metrics.validations[-1:]:
        print(f"validation accuracy {result['accuracy']:.1%}, of the average {result['ema_accuracy']:.1%}.")
    times = [f"{name} {value:.1f} s" for name, value in seconds.items()]
    print(f"wall time: {', '.join(times)}")
    sentence = prediction_sentence(metrics)
    if sentence is not None:
        print(sentence)


def recomputation_sentences(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence per stage whose blocks growth lets be computed again in the backward pass.

    Args:
        history: The stages entered, as plain JSON types.
    """
    for record in history:
        names = record.get("recomputed")
        if names is None:
            continue
        memory = record["memory"]
        predicted = ""
        if memory is not None:
            predicted = f", {StageMemory(**memory)}"
        yield f"stage {record['stage'] + 1}: {len(names)} blocks are computed again in the backward pass{predicted}."


def saving_sentence(summaries: list[StageSummary], num_blocks: int) -> str:
    """What the run saved, in one sentence."""
    full = full_stage(summaries, num_blocks)
    if full is None:
        return "no stage trains all blocks: what full training would have cost was not measured."
    if len(summaries) == 1:
        return "one stage: everything that may train did so in every step."
    ratios = saving(summaries, num_blocks)
    changes = []
    for name, less, more in (("flops", "fewer FLOPs", "more FLOPs"), ("time", "less time", "more time")):
        ratio = ratios[name]
        if ratio is not None:
            saved = 1 - 1 / ratio
            changes.append(f"{abs(saved):.0%} {less if saved >= 0 else more}")
    return f"{' and '.join(changes)} than as many steps of full training (stage {full.stage + 1})."


def milliseconds(seconds: float | None) -> str:
    """A time for the table; a dash where it is not known."""
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def share(part: float | None, whole: float | None) -> str:
    """A part of a time or cost in percent for the table; a dash where one of them is not known."""
    return "-" if part is None or whole is None else f"{part / whole:.0%}"
