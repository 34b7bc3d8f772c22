"""Loads what a script has left with nothing but Diffusers: `python load_result.py PIPELINE OUTPUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import diffusers


def main(pipeline: Path, output: Path) -> None:
    """Load all models and adapters below a folder that are no part of a checkpoint.

    Raises:
        ValueError: A weight is missing or left over, or there is nothing to load.
    """
    found = 0
    for config in sorted(output.rglob("config.json")):
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name", "")
        if not hasattr(diffusers, name) or "checkpoint-" in str(config.relative_to(output)):
            continue
        _, info = getattr(diffusers, name).from_pretrained(config.parent, output_loading_info=True)
        wrong = {kind: names for kind, names in info.items() if names}
        if wrong:
            raise ValueError(f"{config.parent.name}: {wrong}")
        found += 1
    for adapter in sorted(output.glob("*lora*.safetensors")):
        whole = diffusers.DiffusionPipeline.from_pretrained(pipeline, **without_checker(pipeline))
        whole.load_lora_weights(adapter)
        if not whole.get_list_adapters():
            raise ValueError(f"{adapter.name}: no adapter was loaded")
        found += 1
    if not found:
        raise ValueError(f"no model and no adapter is below {output}")


def without_checker(pipeline: Path) -> dict[str, object]:
    """Arguments that leave a safety checker out, where there is one; that of Cosmos is a package of its own."""
    index = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))
    if index["_class_name"].startswith("Cosmos"):
        return {"safety_checker": object()}
    return {"safety_checker": None} if "safety_checker" in index else {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
