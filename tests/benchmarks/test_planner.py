"""The planner's published models are those of the memory benchmark."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autoprog_diffusion.planner.inputs import make_inputs
from autoprog_diffusion.planner.models import published_models
from autoprog_diffusion.planner.shapes import Shape


def shapes(inputs: dict[str, Any]) -> Any:
    return tree_map(lambda value: getattr(value, "shape", value), inputs)


def test_published_models_are_those_of_the_benchmarks(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("memory")
    published = importlib.import_module("published")
    known = {source.name: source for source in published_models().values()}
    assert set(known) == set(published.MODELS)
    for name, source in known.items():
        model = published.MODELS[name]
        assert (source.cls, source.pixels) == (model.cls, model.pixels)
        assert source.config == json.loads(json.dumps(model.config))
        with torch.device("meta"):
            built = source.build()
            side = 166 if name == "Qwen-Image" else None
            ours = make_inputs(built, Shape(side=side))
            theirs = model.inputs(built.config)
        assert sum(parameter.numel() for parameter in built.parameters()) == published.SIZES[name]
        assert shapes(ours) == shapes(theirs)
