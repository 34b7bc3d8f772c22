"""Loads what a script has left with nothing but Diffusers: `python load_result.py PIPELINE OUTPUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers


class NoChecker:
    """In place of a safety checker."""


def main(pipeline: Path, output: Path) -> None:
    """Load all models and adapters below a folder: not those of checkpoints, unless there are no others.

    Raises:
        ValueError: A weight is missing or left over, or there is nothing to load.
    """
    # Here, as the oldest supported Diffusers has it elsewhere.
    from diffusers.pipelines.deprecated import wuerstchen

    found = 0
    configs = sorted(output.rglob("config.json"))
    results = [config for config in configs if "checkpoint-" not in str(config.relative_to(output))]
    adapters = sorted(output.glob("*lora*.safetensors"))
    for config in results if results or adapters else configs:
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name", "")
        known = [module for module in (diffusers, wuerstchen) if hasattr(module, name)]
        if not known:
            continue
        _, info = getattr(known[0], name).from_pretrained(config.parent, output_loading_info=True)
        wrong = {kind: names for kind, names in info.items() if names}
        if wrong:
            raise ValueError(f"{config.parent.name}: {wrong}")
        found += 1
    for adapter in adapters:
        whole = load_pipeline(pipeline)
        if not hasattr(whole, "load_lora_weights"):
            whole = load_pipeline(pipeline / "prior_pipeline")  # the half that is trained
        whole.load_lora_weights(adapter)
        if not whole.get_list_adapters():
            raise ValueError(f"{adapter.name}: no adapter was loaded")
        found += 1
    if not found:
        raise ValueError(f"no model and no adapter is below {output}")


def load_pipeline(folder: Path) -> Any:
    """A pipeline, without its safety checker."""
    return diffusers.DiffusionPipeline.from_pretrained(folder, **without_checker(folder))


def without_checker(pipeline: Path) -> dict[str, object]:
    """Arguments that leave a safety checker out, where there is one; that of Cosmos is a package of its own."""
    index = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))
    if index["_class_name"].startswith("Cosmos"):
        return {"safety_checker": NoChecker()}
    return {"safety_checker": None} if "safety_checker" in index else {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
