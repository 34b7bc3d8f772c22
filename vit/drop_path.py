"""Stochastic depth (arXiv 1603.09382) whose rate can change during training, for timm's and transformers' blocks."""

from __future__ import annotations

from torch import Tensor, nn

from autoprog_diffusion.growth.errors import ConfigError, UnitError


class DropPath(nn.Module):
    """Drops a residual branch per sample with probability `rate`, and scales what is kept by 1 / (1 - rate).

    Args:
        rate: In [0, 1); may be changed between steps.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(N, ...) output of a residual branch -> the same, with the samples that are dropped at zero."""
        if not self.training or not self.rate:
            return branch
        kept = 1 - self.rate
        ones = [1] * (branch.ndim - 1)
        mask = branch.new_empty(len(branch), *ones)  # (N, 1, ...): one number per sample
        mask.bernoulli_(kept).div_(kept)
        return branch * mask


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Let the rate of stochastic depth rise linearly over the blocks from 0 to `rate`, as timm does.

    No parameter is added. As in timm, VOLO's outlookers and class-attention blocks are never dropped.

    Args:
        model: The bare model, of timm or transformers, or an As-ViT.
        rate: Of the last block.

    Raises:
        ConfigError: The rate is not in [0, 1).
        UnitError: A rate is asked for and the model has no block whose branches could be dropped.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_path={rate} is not in [0, 1): use for example 0.1, or 0 for none.")
    blocks = [module for module in model.modules() if _branches(module)]
    kind = type(model).__name__
    if rate and not blocks:
        raise UnitError(f"drop_path={rate}, but no block of {kind} has branches to drop: use 0.")
    if kind == "VOLO" and model.post_network:
        blocks = blocks[: -len(model.post_network)]  # type: ignore[arg-type]
    last = max(len(blocks) - 1, 1)
    for index, block in enumerate(blocks):
        own_rate = rate * index / last
        if type(block).__name__ == "Outlooker":
            own_rate = 0.0
        for name in _branches(block):
            _place(block, name, own_rate)


def _branches(block: nn.Module) -> list[str]:
    """Names of the children that a block sends its residual branches through; none where it is no known block."""
    children = dict(block.named_children())
    names = [name for name in ("drop_path", "drop_path1", "drop_path2") if name in children]
    if names:
        return names
    if {"dropout", "attention", "mlp"} <= children.keys():
        return ["dropout"]  # transformers' layers have one for both branches
    return []


def _place(block: nn.Module, name: str, rate: float) -> None:
    """Give one child of a block the rate: a `DropPath` that is there already, else a new one in or behind it.

    Args:
        block: A block of the model.
        name: Of the child that the residual branch goes through.
        rate: Of this block.
    """
    found = getattr(block, name)
    placed = found
    if isinstance(found, nn.Sequential):
        placed = found[-1]
    if isinstance(placed, DropPath):
        placed.rate = rate
    elif isinstance(found, nn.Dropout) and found.p:
        # Dropout of single numbers comes first, as in transformers.
        both = nn.Sequential(found, DropPath(rate))
        setattr(block, name, both)
    elif rate or not isinstance(found, (nn.Identity, nn.Dropout)):
        new = DropPath(rate).train(block.training)
        setattr(block, name, new)
