"""Step time, memory and search cost of models of published size on one GPU, stage by stage against full training.

    python benchmarks/stage_limit/gpu.py --model sdxl    # or sd3, flux, dit: under 10 minutes each on an H100
    python benchmarks/stage_limit/gpu.py --model sdxl --device cpu --tiny

Random weights: none of this needs trained ones. Parameters, gradients and AdamW's moments are bfloat16, activations of
all but DiT are checkpointed, and Flux has half its blocks, since all of them with gradients and moments are more than
80 GB. What does not fit is reported as such. Without `--tiny` a CUDA device is needed; the result file is named after
the device.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, print_rows, save
from models import DIT, FLUX, SD3, SDXL, Published, without_zeros
from steps import LEVELS, Candidate, Steps, candidates, measure, release

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.search.recorded_calls import map_tensors
from autoprog_diffusion.training.measure import peak_memory, synchronize


SEED, ROUNDS, REPEATS = 0, 3, 3


@dataclass(frozen=True)
class Load:
    """A published model as one GPU trains it.

    Attributes:
        published: Its shape.
        batch: Images a step.
        checkpointing: Whether activations are computed again in the backward pass.
        cut: Sizes that replace the published ones.
        resolutions: Of the stages, beside 1; none where the model's position tables have one size.
    """

    published: Published
    batch: int
    checkpointing: bool = True
    cut: dict[str, Any] = field(default_factory=dict)
    resolutions: tuple[float, ...] = (0.5,)


LOADS = {
    "sdxl": Load(SDXL, 4),
    "sd3": Load(SD3, 4),
    "flux": Load(FLUX, 1, cut={"num_layers": 10, "num_single_layers": 19}),
    "dit": Load(DIT, 32, checkpointing=False),
}


class DeviceError(SystemExit):
    """This machine cannot run what was asked for."""


def check_device(device: str, tiny: bool) -> torch.device:
    """The device to run on.

    Raises:
        DeviceError: There is no CUDA device, or a model of published size is asked for on another one.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "no CUDA device: models of published size need one. To try the code, add --device cpu --tiny."
        )
    if device != "cuda" and not tiny:
        raise DeviceError(f"--device {device} would take hours on models of published size: add --tiny, or use a GPU.")
    return torch.device(device)


def prepare(load: Load, device: torch.device, tiny: bool) -> Steps:
    """The model in training mode on the device, with one batch of random inputs."""
    published = dataclasses.replace(load.published, config={**load.published.config, **({} if tiny else load.cut)})
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model: Any = published.build(tiny) if tiny else _built_on(device, published, dtype)
    model = without_zeros(model.to(device, dtype)).train()
    if load.checkpointing:
        model.enable_gradient_checkpointing()
    batch = 2 if tiny else load.batch

    def place(value: torch.Tensor) -> torch.Tensor:
        """One sample's input as a batch: other noise for every sample, since a search compares them."""
        if not value.dim() or len(value) != 1:
            return value.to(device, dtype) if value.is_floating_point() else value.to(device)
        if value.dim() == 1 or not value.is_floating_point():
            return value.repeat(batch, *[1] * (value.dim() - 1)).to(device)
        return torch.randn(batch, *value.shape[1:], device=device, dtype=dtype)

    return Steps(model, map_tensors(published.inputs(model.config), place))


def _built_on(device: torch.device, published: Published, dtype: torch.dtype) -> nn.Module:
    """A model whose parameters are drawn on the device, in the type they are kept in."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return published.build()
    finally:
        torch.set_default_dtype(default)


def search_cost(steps: Steps) -> dict[str, float]:
    """Seconds and peak bytes of one decision of a zero-shot search, at the step where a run would make it."""
    config = GrowthConfig(num_stages=2, search="zero_shot", stage_embedding=False)
    growth = GrowthScheduler(steps.model, config)
    # No moments: this is about the search alone.
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(steps.model, num_training_steps=8, optimizer=optimizer)
    try:
        for left in reversed(range(config.search_batches)):
            steps.gradients()
            optimizer.step()
            optimizer.zero_grad()
            if left:
                growth.step()
        synchronize(steps.device)
        peak_memory(steps.device)
        started = time.perf_counter()
        growth.step()
        synchronize(steps.device)
        seconds, peak = time.perf_counter() - started, peak_memory(steps.device)
        (decision,) = growth.decisions
        return {"seconds": seconds, "peak": peak, "candidates": len(decision["candidates"])}
    finally:
        release(growth, steps.model)


def run(load: Load, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Every candidate that fits, and the search."""
    torch.manual_seed(SEED)
    steps = prepare(load, device, tiny)
    found, too_large = fitting(steps, candidates(steps.model, load.resolutions, LEVELS[:1] if tiny else LEVELS))
    rows = measure(steps, found, *((1, 1) if tiny else (ROUNDS, REPEATS)))
    search: dict[str, Any] | None = None
    try:
        search = search_cost(steps)
        search["of_full_steps"] = search["seconds"] / rows[0]["step_s"]
    except torch.cuda.OutOfMemoryError as error:
        print(f"the search does not fit: {error}")
    parameters = sum(p.numel() for p in steps.model.parameters())
    return {
        "model": load.published.name, "tiny": tiny, "parameters": parameters, "batch": len(steps.inputs["timestep"]),
        "checkpointing": load.checkpointing, "cut": {} if tiny else load.cut, "rows": rows, "too_large": too_large,
        "search": search,
    }  # fmt: skip


def fitting(steps: Steps, found: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The candidates of which a step fits into memory, and the names of the others.

    Raises:
        DeviceError: Full training, which the rest is compared with, does not fit.
    """
    fits, too_large = [], []
    for candidate in found:
        try:
            with steps.at(candidate) as (optimizer, inputs):
                steps.gradients(inputs)
                optimizer.step()
            fits.append(candidate)
        except torch.cuda.OutOfMemoryError:
            too_large.append(candidate.name)
            torch.cuda.empty_cache()
    if not fits or fits[0] is not found[0]:
        raise DeviceError("full training does not fit into this device's memory: nothing to compare with.")
    return fits, too_large


def show(result: dict[str, Any]) -> None:
    shown = ("candidate", "step_s", "step_share", "flops_share", "above_bound", "peak", "peak_share")
    title = f"{result['model']}, {result['parameters'] / 1e6:,.0f} M parameters, batch {result['batch']}"
    print_rows(title, [{key: row[key] for key in shown} for row in result["rows"]])
    print(f"too large: {result['too_large']}; search: {result['search']}")


def slug(name: str) -> str:
    """A device's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(LOADS), required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a few hundred thousand parameters, to try the code")
    args = parser.parse_args()
    device = check_device(args.device, args.tiny)
    result = run(LOADS[args.model], device, args.tiny)
    show(result)
    if not args.tiny:
        name = f"{slug(torch.cuda.get_device_name(device))}_{args.model}.json"
        save(Path(__file__).with_name(name), {**facts(SEED), **result})


if __name__ == "__main__":
    sys.exit(main())
