"""What a run trains and how it holds it: the plans that are compared."""

from __future__ import annotations

from typing import Any

from autoprog_diffusion.planner.settings import Plan


RANK = 16
FULL = {"num_stages": 1, "stage_embedding": False}


def window(parts: int, frozen_dtype: str) -> dict[str, Any]:
    """One sweep of windows of a part of the blocks each."""
    return {"direction": "window", "num_stages": parts, "frozen_dtype": frozen_dtype, **AGAIN}


AGAIN = {"checkpointing": "all"}
FULL_AGAIN = {**FULL, **AGAIN}
HALF = {"trained_dtype": "bfloat16", "step_in_backward": True}
PLANS = {
    plan.name: plan
    for plan in (
        Plan("full", FULL),
        Plan("full, checkpointing", FULL_AGAIN),
        Plan("freeze"),
        Plan("freeze, checkpointing", AGAIN),
        Plan("freeze, frozen bf16, checkpointing", {**AGAIN, "frozen_dtype": "bfloat16"}),
        Plan("full, 8-bit Adam, step in backward, checkpointing", FULL_AGAIN, "adamw8bit", step_in_backward=True),
        Plan("full, bf16 weights, 8-bit Adam, step in backward, checkpointing", FULL_AGAIN, "adamw8bit", **HALF),
        Plan("full, bf16 weights, 4-bit Adam, step in backward, checkpointing", FULL_AGAIN, "adamw4bit", **HALF),
        Plan("window 1/4, frozen bf16, checkpointing", window(4, "bfloat16")),
        Plan("window 1/8, frozen bf16, checkpointing", window(8, "bfloat16")),
        Plan("window 1/8, frozen float8, checkpointing", window(8, "float8")),
        Plan("window 1/16, frozen float8, checkpointing", window(16, "float8")),
        Plan("window 1/16, frozen nf4, checkpointing", window(16, "nf4")),
        Plan("window 1/8, float8, 8-bit Adam, in backward", window(8, "float8"), "adamw8bit", step_in_backward=True),
        Plan("window 1/16, float8, 8-bit Adam, in backward", window(16, "float8"), "adamw8bit", step_in_backward=True),
        Plan("LoRA", FULL, lora=RANK),
        Plan("LoRA, frozen bf16", {**FULL, "frozen_dtype": "bfloat16"}, lora=RANK),
        Plan("LoRA, frozen float8, checkpointing", {**FULL, **AGAIN, "frozen_dtype": "float8"}, lora=RANK),
        Plan("LoRA, frozen nf4, checkpointing", {**FULL, **AGAIN, "frozen_dtype": "nf4"}, lora=RANK),
    )
}
