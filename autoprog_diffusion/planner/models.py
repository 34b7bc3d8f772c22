"""The model that is planned for: a published one by name, or any Diffusers denoiser by its config.json."""

from __future__ import annotations

import difflib
import importlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from .errors import PlannerError
from .inputs import known_classes


PUBLISHED = Path(__file__).with_name("published.json")
PARTS = ("transformer", "unet", "prior")  # sub-folders of a pipeline that hold its denoiser
CLASS = "_class_name"


@dataclass(frozen=True)
class ModelSource:
    """A denoiser that can be built without weights.

    Attributes:
        name: For people.
        cls: Its class in Diffusers.
        config: Arguments of that class; others have its defaults.
        hub: Where its weights are, for command lines.
        pixels: Side of the images it was made for; None where its configuration says.
    """

    name: str
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    hub: str = ""
    pixels: int | None = None

    def build(self) -> nn.Module:
        """The model on the default device, with random weights.

        Raises:
            PlannerError: Its class does not take this configuration.
        """
        cls = diffusers_class(self.cls, self.name)
        known = {key: value for key, value in self.config.items() if not key.startswith("_")}
        try:
            return cls.from_config(known)
        except (TypeError, ValueError, NotImplementedError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PlannerError(f"{self.name}: {self.cls} cannot be built from its configuration: {reason}") from error


@cache
def published_models() -> dict[str, ModelSource]:
    """Every name of a published model -> the model; several names may mean one."""
    found = {}
    for row in json.loads(PUBLISHED.read_text(encoding="utf-8"))["models"]:
        source = ModelSource(row["name"], row["class"], row["config"], hub=row["hub"], pixels=row["pixels"])
        for name in (*row["aliases"], row["name"].lower(), row["hub"].lower()):
            found[name] = source
    return found


def find_model(model: str) -> ModelSource:
    """The model that a name or a path means.

    Args:
        model: A published name (`sdxl`), a config.json, a folder with one, or a pipeline's folder.

    Raises:
        PlannerError: It is none of them, or no denoiser of Diffusers.
    """
    named = published_models().get(model.lower())
    if named is not None and not Path(model).exists():
        return named
    path = Path(model)
    if path.is_file():
        return _from_config(path, model)
    if path.is_dir():
        for folder in (path, *(path / part for part in PARTS)):
            if (folder / "config.json").is_file():
                return _from_config(folder / "config.json", model)
        raise PlannerError(
            f"{model} holds no config.json, neither itself nor in one of {', '.join(PARTS)}: give the folder of a "
            "pipeline or of its denoiser."
        )
    raise PlannerError(f"{model!r} is no file or folder, and no model that is known by name. {near_models(model)}")


def model_source(model: nn.Module) -> ModelSource:
    """The source of a model that is there: its class and its configuration.

    Args:
        model: A denoiser of Diffusers, bare or wrapped.

    Raises:
        PlannerError: It is no denoiser of Diffusers.
    """
    bare: Any = model
    while not hasattr(bare, "config") and isinstance(getattr(bare, "module", None), nn.Module):
        bare = bare.module  # DistributedDataParallel
    name = type(bare).__name__
    config = getattr(bare, "config", None)
    if config is None or not hasattr(config, "items"):
        raise PlannerError(f"{name} has no configuration of Diffusers (model.config), from which it could be planned.")
    diffusers_class(name, "the model")
    return ModelSource(name, name, dict(config), hub=str(config.get("_name_or_path") or ""))


def near_models(name: str) -> str:
    """A sentence with the published names nearest to a name."""
    names = {source.name: next(key for key, one in published_models().items() if one is source)
             for source in published_models().values()}  # fmt: skip
    near = difflib.get_close_matches(name.lower(), published_models(), n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{meant}Known are {', '.join(names.values())}; any other denoiser by its config.json."


def diffusers_class(name: str, model: str) -> Any:
    """A denoiser class of Diffusers.

    Raises:
        PlannerError: Diffusers has no class of this name, or it is no denoiser.
    """
    diffusers = importlib.import_module("diffusers")
    found = getattr(diffusers, name, None)
    if found is None or not isinstance(found, type) or not issubclass(found, nn.Module):
        raise PlannerError(
            f"{model}: Diffusers {diffusers.__version__} has no model class {name!r}. Install a later Diffusers, or "
            "give the config.json of a denoiser (transformer/ or unet/)."
        )
    if name not in known_classes():
        raise PlannerError(
            f"{model} is a {name}, which is no denoiser whose inputs are known: give one of "
            f"{', '.join(known_classes())}."
        )
    return found


def _from_config(path: Path, name: str) -> ModelSource:
    """The model of a config.json.

    Raises:
        PlannerError: The file is not JSON, or names no denoiser.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlannerError(f"{path} is not a JSON file: {error}.") from error
    cls = config.get(CLASS) if isinstance(config, dict) else None
    if not isinstance(cls, str):
        raise PlannerError(
            f"{path} names no class ({CLASS}), so it is not the configuration of a Diffusers model: give the "
            "config.json of a denoiser (transformer/ or unet/)."
        )
    diffusers_class(cls, name)
    return ModelSource(name, cls, config, hub=name)
