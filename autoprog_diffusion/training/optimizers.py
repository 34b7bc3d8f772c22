"""Optimizers of the recipes by name: torch's, torchao's, bitsandbytes' and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.optimizer_offload import offload_optimizer

from .low_bit import CLASSES, low_bit_adamw
from .recipe_arguments import TrainArguments


# A tensor of this many values is large enough for every optimizer to quantise its state.
TRIED = 4096


@dataclass(frozen=True)
class Settings:
    """What every optimizer is told.

    Attributes:
        lr: Learning rate.
        betas: Of Adam.
        eps: Of Adam.
        weight_decay: Decoupled.
        seed: Of stochastic rounding, or None without.
        fused: Whether torch's AdamW moves a parameter in one pass over its memory.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    seed: int | None = None
    fused: bool = False

    @property
    def of_adam(self) -> dict[str, Any]:
        """As keyword arguments of AdamW."""
        return {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}


def adamw(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW of torch: 8 bytes a parameter."""
    # None leaves the choice between its other ways to torch.
    return torch.optim.AdamW(parameters, fused=settings.fused or None, **settings.of_adam)


def adamw8bit(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW of torchao with 8-bit state: 2 bytes a parameter."""
    return low_bit_adamw("adamw8bit", parameters, seed=settings.seed, **settings.of_adam)


def adamw4bit(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW of torchao with 4-bit state: 1 byte a parameter."""
    return low_bit_adamw("adamw4bit", parameters, seed=settings.seed, **settings.of_adam)


def adamw_fp8(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW of torchao with float8 state: 2 bytes a parameter."""
    return low_bit_adamw("adamw_fp8", parameters, seed=settings.seed, **settings.of_adam)


def adamw8bit_bnb(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes with 8-bit state: 2 bytes a parameter.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "--use_8bit_adam needs bitsandbytes: pip install bitsandbytes. --optimizer adamw8bit is torchao's, which "
            "also runs without a GPU."
        ) from error
    return bitsandbytes.optim.AdamW8bit(parameters, **settings.of_adam)


def adafactor(parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """Adafactor of transformers, with the rate of the schedule: two vectors of state for a matrix, no momentum."""
    from transformers.optimization import Adafactor

    return Adafactor(
        parameters,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        # The schedule of the recipe says the rate, as for every other optimizer.
        relative_step=False,
        scale_parameter=False,
        warmup_init=False,
    )


OPTIMIZERS: dict[str, Callable[[Any, Settings], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adamw4bit": adamw4bit,
    "adamw_fp8": adamw_fp8,
    "adamw8bit_bnb": adamw8bit_bnb,
    "adafactor": adafactor,
}
# Those that can round bfloat16 weights stochastically.
ROUNDING = tuple(CLASSES)


def optimizer_name(args: TrainArguments) -> str:
    """The optimizer that the flags name.

    Raises:
        ConfigError: They name two.
    """
    if not args.use_8bit_adam:
        return args.optimizer
    if args.optimizer not in ("adamw", "adamw8bit_bnb"):
        raise ConfigError(
            f"--use_8bit_adam is --optimizer adamw8bit_bnb, and --optimizer {args.optimizer} is given too: remove one."
        )
    return "adamw8bit_bnb"


def is_fused(args: TrainArguments, device: torch.device, *, sharded: bool) -> bool:
    """Whether AdamW is torch's fused one: as `--fused_optimizer` says, and `auto` where it was measured, on the CPU.

    Its state is that of the ordinary one, and its numbers differ in the last bits. A checkpoint says how it was made,
    and the run that resumes it goes on so.

    Args:
        args: The flags.
        device: Where the run trains.
        sharded: Whether every process holds a part of the parameters.
    """
    if args.fused_optimizer != "auto":
        return args.fused_optimizer == "on"
    return optimizer_name(args) == "adamw" and device.type == "cpu" and not sharded


def make_optimizer(parameters: Any, args: TrainArguments, batch: int, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer that the flags name.

    Args:
        parameters: What to train.
        args: Its name, learning rate and settings.
        batch: Images per optimizer step over all processes, for `scale_lr`.
        fused: As `is_fused`.

    Raises:
        ConfigError: It needs a package that is not installed.
    """
    settings = Settings(
        lr=args.learning_rate * (batch if args.scale_lr else 1),
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.adam_weight_decay,
        seed=args.seed if args.trained_dtype == "bfloat16" else None,
        fused=fused,
    )
    optimizer = OPTIMIZERS[optimizer_name(args)](parameters, settings)
    if args.offload_optimizer:
        offload_optimizer(optimizer)
    return optimizer


def check_optimizer(args: TrainArguments, device: torch.device, precision: str) -> None:
    """Refuse an optimizer or a type that this machine, the packages or the precision cannot do.

    What sharded parameters cannot do is refused by `check_sharding`.

    Args:
        args: The flags.
        device: Where the run trains.
        precision: Mixed precision of the run, `no`, `fp16` or `bf16`.

    Raises:
        ConfigError: The message names what would do.
    """
    name = optimizer_name(args)
    if args.offload_optimizer and name == "adamw8bit_bnb":
        raise ConfigError(
            "--offload_optimizer was never tried with bitsandbytes, whose kernels know their state's place: use "
            "--optimizer adamw8bit, which is torchao's, or do without --offload_optimizer."
        )
    if args.fused_optimizer == "on":
        _check_fused(name, device, precision)
    if args.trained_dtype == "bfloat16":
        _check_bfloat16(name, precision)
    if name != "adamw":
        _try_out(name, args, device)


def _check_fused(name: str, device: torch.device, precision: str) -> None:
    """Refuse a fused optimizer that torch does not have, or that skips steps where nobody sees it."""
    if name != "adamw":
        raise ConfigError(
            f"--fused_optimizer on is of torch's AdamW, and --optimizer {name} is given too: remove one of them."
        )
    if precision == "fp16":
        raise ConfigError(
            "--fused_optimizer on does not go with --mixed_precision fp16: a fused optimizer skips the steps of a "
            "gradient scaler inside of its kernel, and growth would count them. Use bf16, or --fused_optimizer off."
        )
    try:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1, device=device))], fused=True)
    except RuntimeError as error:
        raise ConfigError(
            f"--fused_optimizer on: torch has no fused AdamW for this {device.type} device. Use auto or off."
        ) from error


def _check_bfloat16(name: str, precision: str) -> None:
    """Refuse bfloat16 weights whose small steps would be lost, or that float32 inputs would meet."""
    if name not in ROUNDING:
        raise ConfigError(
            f"--trained_dtype bfloat16 needs an optimizer that rounds stochastically, --optimizer {name} does not: "
            f"steps smaller than 1/256 of a weight would be lost. Use one of {', '.join(ROUNDING)}, or "
            "--trained_dtype float32."
        )
    if precision != "bf16":
        raise ConfigError(
            f"--trained_dtype bfloat16 needs --mixed_precision bf16, it is {precision}: give that flag, or "
            "--trained_dtype float32."
        )


def _try_out(name: str, args: TrainArguments, device: torch.device) -> None:
    """Let the optimizer step once on the device.

    Raises:
        ConfigError: It cannot; the message says what would do.
    """
    if name == "adamw_fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"--optimizer adamw_fp8 needs a GPU with float8 (compute capability 8.9 or later), "
            f"{torch.cuda.get_device_name(device)} has none: use --optimizer adamw8bit."
        )
    try:
        weight = nn.Parameter(torch.zeros(TRIED, device=device))
        weight.grad = torch.zeros_like(weight)
        make_optimizer([weight], args, 1).step()
    except ConfigError:
        raise
    except Exception as error:  # each package has its own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--optimizer {name} does not work on this {device.type} device: {reason}. Use --optimizer adamw or "
            "adafactor, which need torch alone."
        ) from error
