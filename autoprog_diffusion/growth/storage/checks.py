"""Where frozen weights cannot be held small, said before anything trains."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backends.accelerate import backend
from ..backends.fsdp2 import is_sharded
from ..choices import FrozenDtype
from ..errors import OrderError


def check_storage(dtype: FrozenDtype | None, accelerator: Any, model: nn.Module) -> None:
    """Refuse a format that does not go with how the model is spread or computed.

    Args:
        dtype: The format of frozen weights; None is always allowed.
        accelerator: The loop's, or None; then the first forward pass is checked instead.
        model: The bare model.

    Raises:
        OrderError: Parameters are sharded; or the format is bfloat16, the weights are float32, and the accelerator
            computes in another type than bfloat16.
    """
    if dtype is None:
        return
    if is_sharded(model) or backend(accelerator) == "FSDP":
        raise OrderError(
            f"frozen_dtype={dtype!r} does not work on sharded parameters: FSDP gathers every weight of a shard in one "
            "type. Leave frozen_dtype out, since a rank holds only its part of a frozen weight, or use "
            "DistributedDataParallel."
        )
    precision = getattr(accelerator, "mixed_precision", "bf16")
    large = any(parameter.is_floating_point() and parameter.element_size() > 2 for parameter in model.parameters())
    if dtype == "bfloat16" and large and precision != "bf16":
        raise OrderError(
            f'frozen_dtype="bfloat16" is exact under bfloat16 autocast only, and mixed_precision={precision!r}: use '
            'Accelerator(mixed_precision="bf16") (`--mixed_precision bf16`), or frozen_dtype="int8" or "float8", '
            "which are not exact and work in any type."
        )
