"""`autoprog-diffusion families`: the kinds of pipelines that the recipes train, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from autoprog_diffusion.command_line import NAME, parse

from .train import RECIPES


SUBJECTS = "dreambooth"
ADAPTERS = "lora"


@dataclass(frozen=True)
class Arguments:
    """Print the pipelines that can be trained, and by which recipes."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Row:
    """A family of pipelines.

    Attributes:
        pipeline: Class of Diffusers.
        full: Recipe that trains the whole denoiser.
        lora: Recipe that trains adapters; None where Diffusers loads none.
        dreambooth: Recipe that teaches it a subject; None where there is none.
        buckets: Whether images train at their own aspect ratio.
        videos: Whether it trains on short videos.
        data: What its images come with.
        text_tokens: Of a caption, at most; None where the pipeline has one number for all.
    """

    pipeline: str
    full: str
    lora: str | None
    dreambooth: str | None
    buckets: bool
    videos: bool
    data: str
    text_tokens: int | None


def run(argv: Sequence[str]) -> int:
    """Print the table.

    Args:
        argv: Words after `families`.

    Returns:
        0, the exit code.

    Raises:
        SystemExit: The words cannot be read; its code is 2.
    """
    args = parse(Arguments, argv, program=f"{NAME} families")
    rows = families()
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show(rows)
    return 0


def families() -> list[Row]:
    """A row for every class of pipelines, from what the code knows about it."""
    # Only now: they take seconds.
    from autoprog_diffusion.tasks.loading import RECIPES as FULL

    names = {PurePath(entry.script).name: name for name, entry in RECIPES.items()}
    return [_row(pipeline, names[script]) for pipeline, script in FULL.items()]


def _row(pipeline: str, full: str) -> Row:
    import diffusers

    from autoprog_diffusion.tasks.families import FAMILY_OF
    from autoprog_diffusion.tasks.families.base import Family

    entry = RECIPES[full]
    recipe: Any = getattr(entry.load(), entry.kind or "")
    family = FAMILY_OF.get(pipeline)
    captions = full != "dit"
    kind = getattr(diffusers, pipeline, None)  # an older Diffusers lacks some
    taught = captions and (family is None or family.process == "flow")
    return Row(
        pipeline=pipeline,
        full=full,
        lora=ADAPTERS if captions and hasattr(kind, "save_lora_weights") else None,
        dreambooth=SUBJECTS if taught else None,
        buckets=recipe.squares_only is None,
        videos=family is not None and family.check_frames is not Family.check_frames,
        data="captions" if captions else "classes",
        text_tokens=None if family is None else family.most_text,
    )


def show(rows: Sequence[Row]) -> None:
    """Print a table for people.

    Args:
        rows: Of the table.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"What `{NAME} train RECIPE` trains")
    for title in ("Pipeline", "Full", "LoRA", "Subject", "Buckets", "Videos", "Data"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row.pipeline.removesuffix("Pipeline"),
            row.full,
            row.lora or "-",
            row.dreambooth or "-",
            "yes" if row.buckets else "-",
            "yes" if row.videos else "-",
            row.data,
        )
    console = Console()
    console.print(table)
    console.print(
        f"`{NAME} train RECIPE --help` lists the flags. Vision transformers: the recipes vit, vit-finetune and asvit. "
        "Growth alone, in a loop of your own, works with every denoiser of Diffusers (docs/families.md).",
        highlight=False,
    )
