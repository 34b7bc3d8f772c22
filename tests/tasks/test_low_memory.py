"""All that saves memory at once: small frozen weights, low-bit state, bfloat16 weights, steps inside the backward."""

from __future__ import annotations

import pytest

from .test_optimizers import ROUNDED, check_killed_run
from .training import NewTrainer


TOGETHER = (
    "--optimizer", "adamw8bit", "--offload_optimizer", "--step_in_backward", "--gradient_accumulation_steps", 1,
)  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((*ROUNDED, "--frozen_dtype", "bfloat16"), marks=pytest.mark.slow),
        ("--mixed_precision", "bf16", "--frozen_dtype", "int8", "--direction", "window", "--num_stages", 4),
    ],
    ids=["bfloat16", "windows"],
)
def test_a_killed_run_goes_on_bit_identical(new_trainer: NewTrainer, flags: tuple[object, ...]) -> None:
    check_killed_run(new_trainer, *TOGETHER, *flags)
