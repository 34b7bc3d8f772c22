"""Pretrained vision transformers to fine-tune: of a folder, or of timm's and transformers' names on the Hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .models import ModelError, is_timm, load_model, reset_head


def load_pretrained(name: str) -> nn.Module:
    """A pretrained model, with the head it has.

    Args:
        name: A folder that `vit/pretrain.py`, timm or transformers wrote; `timm:<architecture>` or
            `transformers:<Hub name>`, whose weights their library downloads.

    Raises:
        ModelError: There is no such model, or it cannot be downloaded.
        ImportError: It is timm's, and timm is not installed.
    """
    if not name:
        raise ModelError(
            "--model is missing: give the folder that vit/pretrain.py left, a folder of timm or transformers, "
            "timm:<architecture>, or transformers:<Hub name>."
        )
    library, _, rest = name.partition(":")
    if Path(name).is_dir():
        return load_model(name)
    if library == "timm":
        return _download(name, library, lambda timm: timm.create_model(rest, pretrained=True))
    if library == "transformers":
        return _download(name, library, lambda host: host.AutoModelForImageClassification.from_pretrained(rest))
    raise ModelError(f"--model {name} is no folder: give one, timm:<architecture> or transformers:<Hub name>.")


def fit_head(model: nn.Module, classes: Sequence[str]) -> None:
    """Give a model a new head, unless its own was trained on `classes`.

    Args:
        model: Of timm or transformers.
        classes: Names, in the order of the data's labels.
    """
    if trained_classes(model) != list(classes):
        reset_head(model, len(classes))


def trained_classes(model: Any) -> list[str] | None:
    """Names of the classes a model's head was trained on, where its configuration says so."""
    if is_timm(model):
        names = model.pretrained_cfg.get("label_names")
        return list(names) if names else None
    labels: dict[int, str] = model.config.id2label
    return [labels[index] for index in sorted(labels)]


def _download(name: str, library: str, load: Callable[[Any], nn.Module]) -> nn.Module:
    """A model that its library downloads.

    Args:
        name: As the user gave it, for messages.
        library: `timm` or `transformers`.
        load: The library's module -> the model.

    Raises:
        ModelError: The library has an error of its own.
        ImportError: It is not installed.
    """
    try:
        host = importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f'--model {name} needs {library}: pip install "autoprog-diffusion[vit]".') from error
    try:
        return load(host)
    except Exception as error:  # both libraries, the Hub and the network have errors of their own
        raise ModelError(f"--model {name} cannot be loaded: {error}") from error
