"""The classes of a DiT: new label tables that keep the rows of classes it knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    found = [module for name, module in transformer.named_modules() if name.endswith("class_embedder")]
    if not found:
        raise LabelError(f"{type(transformer).__name__} has no class_embedder: use a class-conditional DiT.")
    return found


def label_ids(count: int) -> list[int]:
    """Rows of `count` classes: 0, 1, 2, ..., without the unconditional row."""
    return [index + (index >= NULL_LABEL) for index in range(count)]


def plain_name(name: str) -> str:
    """A class name as folders and labels can be compared: lower case, words apart by one space."""
    words = re.sub("[_-]", " ", name.lower()).split()
    return " ".join(words)


def find_labels(names: Sequence[str], labels: Mapping[str, int]) -> list[int | None]:
    """Rows of classes, by their full names or one of ImageNet's comma-separated synonyms; None for unknown ones."""
    known = {plain_name(label): row for label, row in labels.items()}
    rows = []
    for name in names:
        spellings = [plain_name(part) for part in (name, *name.split(","))]
        rows.append(next((known[part] for part in spellings if part in known), None))
    return rows


def keep_labels(names: Sequence[str], labels: Mapping[str, int]) -> list[int]:
    """Rows of the checkpoint's own classes that the data holds.

    Args:
        names: Classes of the data.
        labels: Class name -> row of the checkpoint, `pipeline.labels`.

    Raises:
        LabelError: The checkpoint lacks a class; the message names it and some it has.
    """
    rows = find_labels(names, labels)
    missing = [name for name, row in zip(names, rows) if row is None]
    if missing:
        raise LabelError(
            f"--keep_classes, but the checkpoint has no class {missing[:5]}: its {len(labels)} names are "
            f"{list(labels)[:8]} and so on. Rename the folders, or leave --keep_classes out for new classes."
        )
    return [row for row in rows if row is not None]


def label_texts(labels: Mapping[str, int]) -> dict[str, str]:
    """Row, as JSON has it -> names as DiTPipeline reads them back: apart by commas, so no name may stand in two rows.

    Args:
        labels: Class name -> row. Commas part synonyms; those that name another class are left out.

    Raises:
        LabelError: Nothing is left of a name.
    """
    owners = {name.strip(): row for name, row in labels.items() if "," not in name}
    texts: dict[str, list[str]] = {}
    for name, row in labels.items():
        words = [word.strip() for word in name.split(",")]
        kept = [word for word in words if owners.setdefault(word, row) == row]
        if not kept:
            raise LabelError(
                f"the class {name!r} has no name of its own: others are called {words}. Rename its folder."
            )
        texts.setdefault(str(row), []).extend(kept)
    return {row: ", ".join(names) for row, names in texts.items()}


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
    known = find_labels(names, labels)
    rows = max(NULL_LABEL, len(names)) + 1
    generator = torch.Generator().manual_seed(seed)
    for embedder in label_tables(transformer):
        old = embedder.embedding_table.weight
        table = _longer(embedder, rows)[:rows]
        null = table[NULL_LABEL]
        for index, row in zip(ids, known):
            # Drawn for every class: those that are known must not change the others' numbers.
            noise = 0.02 * torch.randn(len(null), generator=generator)
            if row is None:
                table[index] = null + noise.to(null)
            else:
                table[index] = old[row]
        _replace(embedder, table)
    transformer.register_to_config(num_embeds_ada_norm=rows - 1)
    return ids


@torch.no_grad()
def pad_labels(transformer: Any) -> None:
    """Move the unconditional row of a DiT of fewer classes to `NULL_LABEL`, in place; its classes stay."""
    embedders = label_tables(transformer)
    for embedder in embedders:
        _replace(embedder, _longer(embedder, NULL_LABEL + 1))
    transformer.register_to_config(num_embeds_ada_norm=embedders[0].num_classes)


def stop_label_dropout(transformer: nn.Module) -> None:
    """Drop no label inside the model, which would draw anew in every block; the task drops one for all of them."""
    for embedder in label_tables(transformer):
        embedder.dropout_prob = 0.0


def _longer(embedder: Any, rows: int) -> Tensor:
    """(at least `rows`, D) a copy of the table, with copies of its unconditional row at the end."""
    table = embedder.embedding_table.weight
    count = len(table)
    null = table[min(NULL_LABEL, count - 1)]
    copies = null.expand(max(0, rows - count), -1)
    return torch.cat([table, copies])


def _replace(embedder: Any, table: Tensor) -> None:
    """Give an embedder another table, (rows, D), that trains if the old one did."""
    frozen = not embedder.embedding_table.weight.requires_grad
    embedder.embedding_table = nn.Embedding.from_pretrained(table.clone(), freeze=frozen)
    embedder.num_classes = len(table) - 1
