"""A tiny pipeline of every kind in a folder of its own, and what loads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoprog_diffusion.tasks.class_conditional import load_dit
from autoprog_diffusion.tasks.flow_matching import load_flow
from autoprog_diffusion.tasks.sdxl import load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline

from .tiny import build_sdxl
from .tiny_transformers import build_dit, build_flux, build_sd3, save


LOADERS: dict[str, Callable[[str], Any]] = {
    "sd": load_pipeline,
    "sdxl": load_sdxl,
    "dit": load_dit,
    "sd3": load_flow,
    "flux": load_flow,
}


def build_folders(root: Path, pipeline_dir: Path) -> dict[str, Path]:
    """Kind of pipeline -> its folder; tests change copies only.

    Args:
        root: Of the folders.
        pipeline_dir: Of the Stable Diffusion pipeline, which is there already.
    """
    return {
        "sd": pipeline_dir,
        "sdxl": build_sdxl(root / "sdxl"),
        "dit": save(root / "dit", build_dit),
        "sd3": save(root / "sd3", build_sd3),
        "flux": save(root / "flux", build_flux),
    }


def edit(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))
