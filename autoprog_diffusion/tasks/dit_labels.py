"""The classes of a DiT: new label tables that keep the rows of classes it knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth.errors import GrowthError


# DiTPipeline asks for this row on the unconditional half of guidance, however many classes the model has.
NULL_LABEL = 1000


class LabelError(GrowthError):
    """The classes of the data do not fit those of the checkpoint."""


def label_tables(transformer: nn.Module) -> list[Any]:
    """The label embedders of a DiT, one per block.

    Raises:
        LabelError: There is none.
    """
    modules = transformer.named_modules()
    found = [module for name, module in modules if name.endswith("class_embedder")]
    if not found:
        raise LabelError(f"{type(transformer).__name__} has no class_embedder: use a class-conditional DiT.")
    return found


def label_ids(count: int) -> list[int]:
    """Rows of `count` classes: 0, 1, 2, ..., without the unconditional row."""
    return [index + (index >= NULL_LABEL) for index in range(count)]


def plain_name(name: str) -> str:
    """A class name as folders and labels can be compared: lower case, words apart by one space."""
    spaced = name.replace("_", " ").replace("-", " ")
    return " ".join(spaced.lower().split())


def find_label(name: str, labels: Mapping[str, int]) -> int | None:
    """Row of a class, by its full name or by one of ImageNet's comma-separated synonyms; None if unknown."""
    known = {plain_name(label): row for label, row in labels.items()}
    for part in (name, *name.split(",")):
        row = known.get(plain_name(part))
        if row is not None:
            return row
    return None


def keep_labels(names: Sequence[str], labels: Mapping[str, int]) -> list[int]:
    """Rows of the checkpoint's own classes that the data holds.

    Args:
        names: Classes of the data.
        labels: Class name -> row of the checkpoint, `pipeline.labels`.

    Raises:
        LabelError: The checkpoint lacks a class; the message names it and some it has.
    """
    rows = [find_label(name, labels) for name in names]
    missing = [name for name, row in zip(names, rows) if row is None]
    if missing:
        raise LabelError(
            f"--keep_classes, but the checkpoint has no class {missing[:5]}: its {len(labels)} names are "
            f"{list(labels)[:8]} and so on. Rename the folders, or leave --keep_classes out for new classes."
        )
    return [row for row in rows if row is not None]


@torch.no_grad()
def fit_labels(transformer: Any, names: Sequence[str], labels: Mapping[str, int], seed: int) -> list[int]:
    """Give a DiT the classes `names`, in place; returns their rows.

    Classes that the checkpoint knows by name keep their embedding. A new one starts as the unconditional row plus
    N(0, 0.02^2), so blocks that are still frozen see an input they know. The unconditional row moves to
    `NULL_LABEL`, where DiTPipeline looks for it; rows of no class are left as they were, or copies of it.

    Args:
        transformer: A `DiTTransformer2DModel`; `num_embeds_ada_norm` of its configuration follows.
        names: Of the new classes, in order.
        labels: Class name -> row of the checkpoint, `pipeline.labels`.
        seed: Of the new rows.
    """
    ids = label_ids(len(names))
    known = [find_label(name, labels) for name in names]
    classes = max(NULL_LABEL, len(names))
    generator = torch.Generator().manual_seed(seed)
    for embedder in label_tables(transformer):
        old = embedder.embedding_table.weight
        null = _null_row(embedder)
        table = null.expand(classes + 1, -1).clone()
        kept = min(len(old), classes + 1)
        table[:kept] = old[:kept]
        for index, row in zip(ids, known):
            # Drawn for every class: those that are known must not change the others' numbers.
            noise = 0.02 * torch.randn(table.shape[1], generator=generator)
            table[index] = null + noise.to(null) if row is None else old[row]
        table[NULL_LABEL] = null
        _replace(embedder, table)
    transformer.register_to_config(num_embeds_ada_norm=classes)
    return ids


@torch.no_grad()
def pad_labels(transformer: Any) -> None:
    """Move the unconditional row of a DiT of fewer classes to `NULL_LABEL`, in place; its classes stay."""
    for embedder in label_tables(transformer):
        null = _null_row(embedder)
        old = embedder.embedding_table.weight
        missing = NULL_LABEL + 1 - len(old)
        if missing > 0:
            _replace(embedder, torch.cat([old, null.expand(missing, -1)]))
    classes = len(label_tables(transformer)[0].embedding_table.weight) - 1
    transformer.register_to_config(num_embeds_ada_norm=classes)


def stop_label_dropout(transformer: nn.Module) -> None:
    """Drop no label inside the model, which would draw anew in every block; the task drops one for all of them."""
    for embedder in label_tables(transformer):
        embedder.dropout_prob = 0.0


def _null_row(embedder: Any) -> torch.Tensor:
    """(D,) the unconditional row: `NULL_LABEL` in a table that holds it, else the last one."""
    table = embedder.embedding_table.weight
    return table[min(NULL_LABEL, len(table) - 1)]


def _replace(embedder: Any, table: torch.Tensor) -> None:
    weight = embedder.embedding_table.weight
    frozen = not weight.requires_grad
    embedder.embedding_table = nn.Embedding.from_pretrained(table.clone(), freeze=frozen)
    embedder.num_classes = len(table) - 1
