"""What the benchmark scripts share: models, device facts, result files."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
from torch import nn

import autoprog_diffusion
from autoprog_diffusion.search.recorded_calls import RecordedCall, output_tensor


RESULTS = Path(__file__).parent / "results"


def facts(seed: int) -> dict[str, Any]:
    """Device, versions, seed and command of this process."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "autoprog_diffusion": autoprog_diffusion.__version__,
        "seed": seed,
        "command": " ".join(["python", *sys.argv]),
    }


def load_literal(name: str) -> ModuleType:
    """The slow, literal formulas of `tests/search/<name>.py`, which no package holds."""
    root = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
    spec = importlib.util.spec_from_file_location(name, root / "tests" / "search" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(name: str, values: dict[str, Any]) -> None:
    """Write `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def rows_of_others(name: str, models: list[str]) -> list[dict[str, Any]]:
    """Rows that `results/<name>.json` holds of models that are not measured now."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [row for row in rows if row["model"] not in models]


def make_dit(layers: int = 12, width: int = 384, size: int = 16) -> nn.Module:
    """A class-conditional DiT with learned variance; no parameter at zero, as after some training."""
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        num_layers=layers,
        sample_size=size,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return without_zeros(model)


def without_zeros(model: nn.Module) -> nn.Module:
    """Fill zero-initialised parameters with small noise, in place: a fresh adaLN-zero model has no gradient inside."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.02)
    return model


def make_call(model: nn.Module, inputs: dict[str, Any]) -> RecordedCall:
    """A call whose output gradient is that of a mean squared error against noise."""
    with torch.no_grad():
        output = output_tensor(model(**inputs))
    return RecordedCall((), inputs, 2 * (output - torch.randn_like(output)) / output.numel())


def dit_inputs(batch: int, size: int = 16) -> dict[str, Any]:
    """Random inputs of `make_dit`."""
    return {
        "hidden_states": torch.randn(batch, 4, size, size),
        "timestep": torch.randint(0, 1000, (batch,)),
        "class_labels": torch.randint(0, 1000, (batch,)),
    }
