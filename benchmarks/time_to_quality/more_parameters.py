"""Models of 28 and 31 M parameters: do the gains hold where arithmetic takes the time of a step, and not overhead?

    python recipes/assets/build/pretrain_larger.py --model unet --minutes 30
    python recipes/assets/build/pretrain_larger.py --model unet --export    # and both for flow
    OMP_NUM_THREADS=1 python benchmarks/time_to_quality/more_parameters.py  # the runs that are missing, then the table
    python benchmarks/time_to_quality/more_parameters.py --table            # the table of the runs that are there

A UNet and an SD3 transformer, pretrained on Twemoji at 128 pixels, learn OpenMoji at latents of 32x32, under bfloat16
autocast, as people train such models; evaluations are float32. Rates are tuned on seed 0; seed 1 is reported. Every
run leaves a line in more_parameters.jsonl.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import tyro


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from cases import MORE_PARAMETERS
from methods import AUTOPROG_ZERO, METHODS
from study import Arguments, Study


AVERAGED = ("full_average", "late_average", "later_average", "lora_average")
COMPARED = {
    **{name: METHODS[name] for name in ("full", "full_short", "full_quarter", *AVERAGED)},
    "autoprog_zero": AUTOPROG_ZERO,
}
STUDY = Study(
    name="more_parameters",
    title="models of 28 and 31 M parameters",
    cases=MORE_PARAMETERS,
    seeds={name: (1,) for name in MORE_PARAMETERS},
    methods={name: replace(method, autocast=True) for name, method in COMPARED.items()},
    tuned={
        "full": (1.25e-4, 2.5e-4, 5e-4, 1e-3),
        "full_average": (1.25e-4, 2.5e-4, 5e-4, 1e-3),
        "lora_average": (1e-3, 2e-3, 4e-3, 8e-3),
    },
    like={
        "full_short": "full",
        "full_quarter": "full",
        "late_average": "full_average",
        "later_average": "full_average",
        "autoprog_zero": "full",
    },
)


if __name__ == "__main__":
    torch.set_num_threads(1)
    STUDY.run(tyro.cli(Arguments, description=__doc__))
