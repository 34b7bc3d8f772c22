"""Building, saving and loading the vision transformers of timm and transformers, by one name each.

A checkpoint is the library's own: `timm.create_model("local-dir:FOLDER", pretrained=True)` or
`AutoModelForImageClassification.from_pretrained(FOLDER)` loads it without this package.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprog_diffusion.growth.errors import GrowthError

from .drop_path import set_drop_path


# timm's modules whose models are plain stacks of blocks; their names are `timm.list_models()`.
TIMM_MODULES = ("deit", "eva", "vision_transformer", "volo")
# Name -> classes of transformers.
TRANSFORMERS = {
    "deit": ("DeiTConfig", "DeiTForImageClassification"),
    "vit": ("ViTConfig", "ViTForImageClassification"),
}
WEIGHTS = "model.safetensors"
Sizes = dict[str, Any]  # in the library's words


class ModelError(GrowthError):
    """A vision transformer cannot be built, saved or loaded as asked."""


def build_model(
    name: str, *, num_classes: int, image_size: int, drop_path: float = 0.0, **overrides: Any
) -> nn.Module:
    """A vision transformer with random weights, or with those of a local folder and a head of `num_classes`.

    Args:
        name: `timm:<architecture>`, `transformers:vit`, `transformers:deit`, or a folder that `save_model` wrote.
        num_classes: Width of the head; one that differs from the folder's gives a new head.
        image_size: Side of the (square) images, in pixels; position embeddings are interpolated for others.
        drop_path: Rate of stochastic depth of the last block.
        overrides: Sizes, in the library's words (timm: `depth`, `embed_dim`, `num_heads`, `patch_size`; transformers:
            `num_hidden_layers`, `hidden_size`, `num_attention_heads`, `patch_size`, ...).

    Raises:
        ModelError: The name is unknown, heads do not divide the width, or patches do not divide the image.
        ImportError: timm is named and not installed.
    """
    library, _, architecture = name.partition(":")
    if library == "timm":
        model = _build_timm(architecture, num_classes, image_size, overrides)
    elif library == "transformers":
        model = _build_transformers(architecture, num_classes, image_size, overrides)
    elif Path(name).is_dir():
        model = _adapted(load_model(name), name, num_classes, overrides)
    else:
        known = ", ".join(f"transformers:{short}" for short in TRANSFORMERS)
        raise ModelError(
            f"model={name!r} is neither a folder nor a known name: use timm:<architecture>, {known}, or the folder of "
            "a saved model."
        )
    check_size(model, image_size)
    set_drop_path(model, drop_path)
    return model


def save_model(model: nn.Module, folder: str | Path, *, labels: Sequence[str] | None = None) -> None:
    """Write a standard checkpoint of the model's own library: `config.json` and `model.safetensors`.

    Args:
        model: The bare model.
        folder: Created where it does not exist.
        labels: Names of the classes, for the configuration.

    Raises:
        ModelError: The model is of neither library.
    """
    if is_transformers(model):
        hf: Any = model
        if labels is not None:
            by_index = dict(enumerate(labels))
            hf.config.id2label = by_index
            hf.config.label2id = {label: index for index, label in by_index.items()}
        hf.save_pretrained(folder)
    elif is_timm(model):
        config = None
        if labels is not None:
            config = {"label_names": list(labels)}
        _timm().models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    else:
        raise ModelError(f"{type(model).__name__} is a model of neither timm nor transformers: save its state_dict.")


def load_model(folder: str | Path) -> nn.Module:
    """The model that `save_model`, timm or transformers wrote into a folder.

    Args:
        folder: With `config.json` and `model.safetensors`.

    Raises:
        ModelError: The folder holds no checkpoint, a damaged one, or one of another kind of model.
        ImportError: It is timm's, and timm is not installed.
    """
    path = Path(folder)
    missing = [name for name in ("config.json", WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ModelError(f"{str(path)!r} holds no {' and no '.join(missing)}: give the folder of a saved model.")
    try:
        return _load(path)
    except (ModelError, ImportError):
        raise
    except Exception as error:  # the libraries, safetensors and JSON each have their own
        raise ModelError(f"{str(path)!r} holds a model that cannot be loaded: {error}") from error


def _load(path: Path) -> nn.Module:
    """The model in a folder that has all files."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'} holds no JSON object.")
    if "architecture" in config:
        return _timm().create_model(f"local-dir:{path}", pretrained=True)
    known = [model for _, model in TRANSFORMERS.values()]
    architectures = config.get("architectures") or [None]
    found = architectures[0]
    if found not in known:
        raise ModelError(f"{str(path)!r} holds a {found}: known are timm's models and {known} of transformers.")
    model_class = getattr(importlib.import_module("transformers"), found)
    model, info = model_class.from_pretrained(path, output_loading_info=True)
    # transformers would give the model random weights in place of those that are missing, and leave others out.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ModelError(
                f"{path / WEIGHTS} does not fit its config.json: {kind} are {sorted(map(str, info[kind]))[:3]}."
            )
    return model


def reset_head(model: Any, num_classes: int) -> None:
    """Give a model a new, random classifier, in place.

    Args:
        model: Of timm or transformers.
        num_classes: Outputs of the classifier.
    """
    if is_timm(model):
        model.reset_classifier(num_classes)
        return
    model.config.num_labels = num_classes
    model.num_labels = num_classes
    model.classifier = nn.Linear(model.config.hidden_size, num_classes)
    model._init_weights(model.classifier)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """(N, C, H, W) images -> (N, classes), for both libraries.

    Args:
        model: Bare, or wrapped by DistributedDataParallel.
        images: At any resolution that the patches divide.
    """
    inner = getattr(model, "module", model)
    if is_transformers(inner):
        return model(pixel_values=images, interpolate_pos_encoding=True).logits
    return model(images)


def size_multiple(model: Any) -> int:
    """The number image sides are multiples of: the strides before the first block, for VOLO also its pooling."""
    embedder: nn.Module = model
    if is_timm(model):
        embedder = model.patch_embed
    strides = [module.stride[0] for module in embedder.modules() if isinstance(module, nn.Conv2d)]
    return math.prod(strides) * getattr(model, "pooling_scale", 1)


def check_size(model: nn.Module, image_size: int) -> None:
    """Raise `ModelError` where the model's patches do not divide the image side."""
    multiple = size_multiple(model)
    if image_size < multiple or image_size % multiple:
        below = max(multiple, image_size // multiple * multiple)
        raise ModelError(
            f"image_size={image_size} is not a multiple of the patch, {multiple}: use {below} or {below + multiple}."
        )


def is_transformers(model: nn.Module) -> bool:
    """Whether the model is one of transformers."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


def is_timm(model: nn.Module) -> bool:
    """Whether the model is one of timm."""
    return hasattr(model, "pretrained_cfg") and hasattr(model, "group_matcher")


def _build_timm(name: str, num_classes: int, image_size: int, overrides: Sizes) -> nn.Module:
    """A model of timm, by its architecture's name.

    Raises:
        ModelError: It is no vision transformer of timm, or cannot be built in these sizes.
    """
    timm = _timm()
    in_modules = timm.models.is_model_in_modules
    if not in_modules(name, TIMM_MODULES):
        known: list[str] = []
        for module in TIMM_MODULES:
            known += timm.list_models(module=module)
        close = difflib.get_close_matches(name, known, n=5) or known[:5]
        raise ModelError(
            f"model='timm:{name}' is not a vision transformer of timm {timm.__version__}'s modules {TIMM_MODULES}: "
            f"did you mean one of {close}?"
        )
    sizes = {"num_classes": num_classes, "img_size": image_size}
    # VOLO adds its position embeddings at one size only; `vit/resolution.py` has the others.
    if not in_modules(name, ("volo",)):
        sizes["dynamic_img_size"] = True
    try:
        return timm.create_model(name, **(sizes | overrides))
    except (AssertionError, TypeError) as error:
        sizes_given = [f"{key}={value!r}" for key, value in overrides.items()]
        given = ", ".join(sizes_given) or "its own sizes"
        raise ModelError(f"timm:{name} cannot be built with {given}: {error}; change that size.") from error


def _build_transformers(name: str, num_classes: int, image_size: int, overrides: Sizes) -> nn.Module:
    """A model of transformers, by our short name.

    Raises:
        ModelError: The name or a size is unknown, or heads do not divide the width.
    """
    if name not in TRANSFORMERS:
        close = difflib.get_close_matches(name, TRANSFORMERS, n=1) or list(TRANSFORMERS)
        listed = " or ".join(f"transformers:{known}" for known in close)
        raise ModelError(f"model='transformers:{name}' is not known: use {listed}.")
    transformers = importlib.import_module("transformers")
    config_name, model_name = TRANSFORMERS[name]
    config_class = getattr(transformers, config_name)
    model_class = getattr(transformers, model_name)
    unknown = sorted(overrides.keys() - vars(config_class()))
    if unknown:
        raise ModelError(
            f"{config_class.__name__} has no {unknown}: its sizes are hidden_size, num_hidden_layers, "
            "num_attention_heads, intermediate_size and patch_size."
        )
    if "hidden_size" in overrides:
        # The usual width of the MLP, unless it is given.
        overrides = {"intermediate_size": 4 * overrides["hidden_size"], **overrides}
    config = config_class(num_labels=num_classes, image_size=image_size, **overrides)
    heads = config.num_attention_heads
    width = config.hidden_size
    if width % heads:
        raise ModelError(f"num_attention_heads={heads} does not divide hidden_size={width}: change one of them.")
    return model_class(config)


def _adapted(model: Any, name: str, num_classes: int, overrides: Sizes) -> nn.Module:
    """A loaded model with a head of `num_classes`: its own where that fits, else a new one.

    Raises:
        ModelError: Sizes are given, which a loaded model cannot take.
    """
    if overrides:
        raise ModelError(
            f"{sorted(overrides)} cannot change the saved model in {name!r}: build a new one by its name."
        )
    own = model.num_classes if is_timm(model) else model.config.num_labels
    if num_classes != own:
        reset_head(model, num_classes)
    return model


def _timm() -> Any:
    """The module timm, which only these models need.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ImportError('this model needs timm: pip install "autoprog-diffusion[vit]".') from error
