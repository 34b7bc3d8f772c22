"""Latents of 32x32: what resolution growth is worth where low resolution has room, and whether freezing holds there.

    OMP_NUM_THREADS=1 python benchmarks/time_to_quality/larger.py           # the runs that are missing, then the table
    python benchmarks/time_to_quality/larger.py --table                     # the table of the runs that are there
    python benchmarks/time_to_quality/larger.py --only sd_128               # one of the two cases

The bundled UNet and SD3 transformer, pretrained at 64 pixels, learn OpenMoji at 128: a quarter of the resolution would
be 8x8 latents, half of it is what they know. Flow matching takes the shift of time that belongs to each size (SD3's
rule). Rates are tuned on seed 0; the others are reported. Every run leaves a line in larger.jsonl.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import tyro


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from cases import LARGER
from methods import AUTOPROG_ZERO, AVERAGED, METHODS, Method, late_plan
from study import Arguments, Study

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, Stage, fixed_plan
from autoprog_diffusion.growth.presets import freezing_from


def low_at_first(count: int, steps: int, seed: int) -> GrowthPlan:
    """Half the resolution for 30 % of the run, everything trains all the time."""
    del seed
    blocks = tuple(range(count))
    return GrowthPlan(count, steps, (Stage(0, blocks, 0.5), Stage(round(0.3 * steps), blocks)))


def low_then_late(count: int, steps: int, seed: int) -> GrowthPlan:
    """Half the resolution for 30 % of the run, then the default's late freezing."""
    late = late_plan(count, steps, seed).stages
    whole = Stage(round(0.3 * steps), late[0].blocks)
    return GrowthPlan(count, steps, (replace(late[0], resolution=0.5), whole, *late[1:]))


def low_to_first_freeze(count: int, steps: int, seed: int) -> GrowthPlan:
    """The default's stages, with half the resolution in the first one: `--resolutions 0.5 1 1 1 1 1 1 1`."""
    del seed
    stages = min(8, count)
    resolutions = (0.5, *[1.0] * (stages - 1))
    return fixed_plan(GrowthConfig(**freezing_from(0.4, stages), resolutions=resolutions), count, steps)


CHOSEN = {
    method.name: method
    for method in (
        METHODS["full"],
        METHODS["full_short"],
        METHODS["full_quarter"],
        METHODS["full_average"],
        METHODS["late_average"],
        METHODS["later_average"],
        METHODS["resolution"],
        Method("low_first", "half the resolution for 30 %", plan=low_at_first),
        Method("low_first_average", "the same, average", plan=low_at_first, **AVERAGED),
        Method("low_late_average", "the same, freezing from 40 %, average", plan=low_then_late, **AVERAGED),
        Method(
            "low_default_average",
            "half the resolution for 40 %, then freezing, average",
            plan=low_to_first_freeze,
            **AVERAGED,
        ),
        AUTOPROG_ZERO,
    )
}
TUNED = {
    "full": (2.5e-4, 5e-4, 1e-3, 2e-3),
    "full_average": (1.25e-4, 2.5e-4, 5e-4, 1e-3),
    "resolution": (5e-4, 1e-3, 2e-3),
}
# The rates of these are those of a tuned method like them.
LIKE = {
    "full_short": "full",
    "full_quarter": "full",
    "late_average": "full_average",
    "later_average": "full_average",
    "low_first": "resolution",
    "low_first_average": "full_average",
    "low_late_average": "full_average",
    "low_default_average": "full_average",
    "autoprog_zero": "resolution",
}


STUDY = Study(
    name="larger",
    title="latents of 32x32",
    cases=LARGER,
    seeds={"sd_128": (1, 2), "flow_128": (1, 2)},
    methods=CHOSEN,
    tuned=TUNED,
    like=LIKE,
)


if __name__ == "__main__":
    torch.set_num_threads(1)
    STUDY.run(tyro.cli(Arguments, description=__doc__))
