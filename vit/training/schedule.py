"""Optimizer and learning rate of pretraining, as timm makes them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .arguments import TrainArguments


def make_optimizer(model: nn.Module, args: TrainArguments) -> torch.optim.Optimizer:
    """AdamW over all that trains; norms, biases and position embeddings are not decayed."""
    decayed = []
    plain = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token", "position_embeddings"))
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        used,
        lr=args.lr,
        betas=args.opt_betas,
        eps=args.opt_eps,
        weight_decay=args.weight_decay,
    )


def warmup_steps(args: TrainArguments, steps_per_epoch: int) -> int:
    """Optimizer steps of warm-up, from the flag in steps or the one in epochs."""
    if args.warmup_steps is not None:
        return args.warmup_steps
    return round(args.warmup_epochs * steps_per_epoch)


def make_schedule(
    optimizer: torch.optim.Optimizer, args: TrainArguments, done: Callable[[int], float], steps_per_epoch: int
) -> LambdaLR:
    """The learning rate of every optimizer step; growth does not start it again.

    Args:
        optimizer: Whose learning rate it is.
        args: Warm-up, peak and end.
        done: Share of the decay that has passed before an optimizer step, from 0 to 1.
        steps_per_epoch: Optimizer steps of an epoch.
    """
    warmup = warmup_steps(args, steps_per_epoch)
    return LambdaLR(optimizer, lambda step: learning_rate(step, args, warmup, done(step)) / args.lr)


def learning_rate(step: int, args: TrainArguments, warmup: int, done: float) -> float:
    """Learning rate of an optimizer step, counted from 0: linear warm-up, then cosine from the first step on.

    The cosine's own clock includes the warm-up, as in timm.

    Args:
        step: Of the run.
        args: Warm-up, peak and end.
        warmup: Optimizer steps of warm-up.
        done: Share of the decay that has passed, from 0 to 1.

    Example:
        >>> args = TrainArguments(lr=1.0, warmup_lr=0.0, min_lr=0.0)
        >>> [learning_rate(step, args, 2, step / 8) for step in (0, 1, 4, 8)]
        [0.0, 0.5, 0.5, 0.0]
    """
    if step < warmup:
        return args.warmup_lr + (args.lr - args.warmup_lr) * step / warmup
    if args.sched == "constant":
        return args.lr
    return args.min_lr + (args.lr - args.min_lr) * (1 + math.cos(math.pi * done)) / 2
