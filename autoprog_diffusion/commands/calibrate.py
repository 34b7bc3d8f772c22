"""`autoprog-diffusion calibrate`: how fast this machine trains, for the times of `plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from autoprog_diffusion.command_line import parse


@dataclass(frozen=True)
class Arguments:
    """Measure how fast this machine trains; `plan` then tells times."""

    device: str | None = None
    """cpu, cuda, cuda:1, ... [a GPU if there is one]."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of matrix products [bfloat16 on a GPU, float32 on a CPU]."""
    output: str | None = None
    """File to write [where `plan` looks for it]."""
    json: bool = False
    """Print JSON instead of a sentence."""


def run(argv: Sequence[str]) -> int:
    """Measure, write the file, and print the numbers.

    Args:
        argv: Words after `calibrate`.

    Raises:
        PlannerError: There is no such device.
    """
    args = parse(Arguments, argv, program="autoprog-diffusion calibrate")
    import torch

    from autoprog_diffusion.planner.calibrate import calibrate
    from autoprog_diffusion.planner.errors import PlannerError
    from autoprog_diffusion.planner.machine import DEFAULT_FILE

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PlannerError(f"--device {name} cannot be used ({reason}): use cpu, or a GPU that is there.") from error
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    found = calibrate(device, getattr(torch, dtype))
    path = Path(args.output) if args.output else DEFAULT_FILE.expanduser()
    found.save(path)
    if args.json:
        print(json.dumps({"file": str(path), **asdict(found)}, indent=1))
        return 0
    attention = ", ".join(f"{speed / 1e9:.4g} (heads of {head})" for head, speed in found.attention.items())
    print(
        f"{found.device}, {found.dtype}: {found.products / 1e9:.4g} GFLOP/s in matrix products, "
        f"{found.convolutions / 1e9:.4g} in convolutions, {attention} in attention; "
        f"{found.bandwidth / 1e9:.4g} GB/s; {found.call * 1e6:.3g} us a call; "
        f"{found.optimizer * 1e9:.3g} ns a parameter of AdamW. Written to {path}."
    )
    return 0
