"""Progressive re-tokenization: the first projection keeps its weights and sees fewer, larger tokens early in training.

Source: As-ViT (arXiv 2202.11921), whose training code was never released. Its published schedule for a 4-pixel kernel
(stride 16, dilation 5; stride 8, dilation 2; stride 4, dilation 1) follows one rule, `dilation_for`. The rule needs
nothing of As-ViT, so it serves every vision transformer whose patch projection is a convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autoprog_diffusion.growth.errors import GrowthError


# Where timm, transformers and our As-ViT keep the first projection, relative to what holds the position embeddings.
PROJECTIONS = ("patch_embed.proj", "patch_embeddings.projection", "embed.proj")
PADS_ITSELF = "embed.proj"  # As-ViT's embedder pads by this file's rule, from the projection's stride and dilation
POSITIONS = ("pos_embed", "position_embeddings")
AFTER_POSITIONS = ("pos_drop", "dropout")
# Fractions of the run at which the strides of the As-ViT paper change, read off its figure.
PUBLISHED_BOUNDARIES = (80 / 300, 132 / 300)


Grid = tuple[int, ...]  # rows and columns of tokens


class RetokenError(GrowthError):
    """A model cannot be re-tokenized, or not with this stride or image size."""


def dilation_for(stride: int, kernel: int) -> int:
    """Pixels between the weights of a kernel (one side) at a stride: the most that keeps it within one token.

    Source: the rule that fits all three stages of the figure in the As-ViT paper.

    Args:
        stride: Pixels from one token to the next.
        kernel: Weights of the kernel along a side.

    Example:
        >>> [dilation_for(stride, 4) for stride in (16, 8, 4)], dilation_for(32, 16)
        ([5, 2, 1], 2)
    """
    if kernel == 1:
        return 1
    fitting = (stride - 1) // (kernel - 1)
    return max(1, fitting)


def padding_for(stride: int, kernel: int) -> tuple[int, int]:
    """Pixels to add before and after a side (negative: to cut off) so that n * stride pixels give exactly n tokens.

    A kernel wider than its token reaches evenly into both neighbours, a narrower one sits in the token's middle; of an
    odd number of pixels the larger part is added behind. At the model's own stride this is As-ViT's padding.

    Args:
        stride: Pixels from one token to the next.
        kernel: Weights of the kernel along a side.

    Example:
        >>> padding_for(4, 7), padding_for(16, 4), padding_for(12, 4)
        ((1, 2), (0, 0), (-1, -1))
    """
    reach = dilation_for(stride, kernel) * (kernel - 1) + 1
    missing = reach - stride
    before = missing // 2
    return before, missing - before


def find_projection(model: nn.Module) -> str:
    """Name of the model's patch projection.

    Raises:
        RetokenError: There is none, or more than one; the message lists the model's convolutions.
    """
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = [name for name in convolutions if _ends_with(name, *PROJECTIONS)]
    if len(found) != 1:
        raise RetokenError(
            f"{type(model).__name__} has {len(found)} patch projections ({' or '.join(PROJECTIONS)}), not one: name "
            f"it with projection=...; its convolutions are {convolutions[:8]}."
        )
    return found[0]


def _ends_with(name: str, *ends: str) -> bool:
    """Whether the last parts of a module's dotted name are one of `ends`."""
    suffixes = tuple(f".{end}" for end in ends)
    return f".{name}".endswith(suffixes)


class Retokenizer:
    """Changes the stride of a model's first projection, in place and back.

    Nothing is added to the model: the convolution's own stride and dilation change, a hook adapts the padding, and at
    a larger stride the position embeddings are interpolated for the moment they are added (gradients reach the real
    ones). At the model's own stride no hook is left and the model is bit for bit the one it was.

    Args:
        model: The bare model.
        projection: Name of the convolution, where it is not where timm or transformers keep it.

    Raises:
        RetokenError: The projection cannot be found, is not square, does not fit the position embeddings, or is
            re-tokenized already.

    Example:
        >>> model = nn.Sequential()
        >>> model.patch_embed = nn.Sequential()
        >>> model.patch_embed.proj = nn.Conv2d(3, 8, 4, 4)
        >>> tokens = Retokenizer(model)
        >>> tokens.enter(16)
        >>> model.patch_embed.proj.dilation, tokens.stride
        ((5, 5), 16)
        >>> tokens.restore()
        >>> model.patch_embed.proj.dilation, tokens.stride
        ((1, 1), 4)
    """

    def __init__(self, model: nn.Module, projection: str | None = None) -> None:
        name = projection or find_projection(model)
        self.convolution = _square_convolution(model, name)
        self.kernel = self.convolution.kernel_size[0]
        self.native = self.convolution.stride[0]
        self._own = {key: getattr(self.convolution, key) for key in ("stride", "dilation", "padding")}
        embedder, _, _ = name.rpartition(".")
        holder, _, _ = embedder.rpartition(".")
        self._embed = model.get_submodule(embedder)
        self._holder = model.get_submodule(holder)  # of the position embeddings
        self._pads_itself = _ends_with(name, PADS_ITSELF)
        self._positions: str | None = None
        for key in POSITIONS:
            if self._positions is None and self._holder._parameters.get(key) is not None:
                self._positions = key
        self._handles: list[RemovableHandle] = []
        self._grid()  # refuses now what would fail in the middle of a run

    @property
    def stride(self) -> int:
        """The current stride, in pixels."""
        return self.convolution.stride[0]

    def check(self, stride: int | None) -> int:
        """The stride in pixels that `enter` would take; None is the model's own.

        Raises:
            RetokenError: It is not a multiple of the model's own.
        """
        wanted = self.native if stride is None else stride
        whole = isinstance(wanted, int) and not isinstance(wanted, bool)
        if not whole or wanted < self.native or wanted % self.native:
            allowed = [self.native * factor for factor in (1, 2, 4, 8)]
            raise RetokenError(
                f"stride {wanted!r} is not a multiple of the model's own, {self.native}: use one of {allowed}, ..."
            )
        return wanted

    def enter(self, stride: int | None) -> None:
        """Let tokens be `stride` pixels apart, until the next call of this or of `restore`.

        Args:
            stride: In pixels; None is the model's own.

        Raises:
            RetokenError: As `check`. An image whose sides the stride does not divide raises in the forward pass.
        """
        wanted = self.check(stride)
        self.restore()
        if wanted == self.native:
            return
        dilation = dilation_for(wanted, self.kernel)
        # Set in place, not by a new layer: optimizers, EMA and wrappers know this one.
        self.convolution.stride = (wanted, wanted)
        self.convolution.dilation = (dilation, dilation)
        self.convolution.padding = (0, 0)
        # Also where the embedder pads itself: a second Retokenizer finds the first by this hook.
        padding = self.convolution.register_forward_pre_hook(self._pad)
        self._handles.append(padding)
        if self._positions is not None:
            self._hook_positions()

    def restore(self) -> None:
        """Give the model its own stride, dilation and padding back; does nothing where it has them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for key, value in self._own.items():
            setattr(self.convolution, key, value)

    def _hook_positions(self) -> None:
        """Interpolate the position embeddings from the projection to the sum."""
        shadow = self.convolution.register_forward_hook(self._shadow)
        self._handles.append(shadow)
        # The dropout after the sum also runs where a caller enters by `forward_features`.
        for name, module in self._holder.named_children():
            if name in AFTER_POSITIONS:
                added = module.register_forward_pre_hook(self._unshadow)
                self._handles.append(added)
        # For a forward pass that fails before it.
        left = self._holder.register_forward_hook(self._unshadow, always_call=True)
        self._handles.append(left)

    def _pad(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Pad the images (N, in, H, W) so that H / stride x W / stride tokens come out; None leaves them.

        Raises:
            RetokenError: The stride does not divide a side.
        """
        if self._pads_itself:
            return None
        images = inputs[0]
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise RetokenError(
                f"images of {(height, width)} pixels cannot be cut into tokens {self.stride} pixels apart: "
                "both sides must be multiples of the stride; resize them or use a smaller one."
            )
        before, after = padding_for(self.stride, self.kernel)
        return F.pad(images, (before, after, before, after))

    def _shadow(self, module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        """Let interpolated position embeddings be found in place of the parameter until they have been added.

        Args:
            module: The projection.
            inputs: Its padded images.
            tokens: Its output, (N, d, h, w).
        """
        old = self._grid()
        new = tuple(tokens.shape[-2:])
        if old == new or getattr(self._holder, "dynamic_img_size", False):
            return  # timm's dynamic models resample by themselves
        positions: Tensor = self._holder._parameters[self._positions]  # type: ignore[index,assignment]
        prefix = positions.shape[1] - math.prod(old)
        moved = interpolate_positions(positions, old, new, prefix=prefix)
        # An attribute of the instance is found before a parameter; parameters and state dict stay as they are.
        self._holder.__dict__[str(self._positions)] = moved

    def _unshadow(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        """Let the parameter be found again."""
        self._holder.__dict__.pop(str(self._positions), None)

    def _grid(self) -> Grid:
        """Rows and columns of tokens that the position embeddings are for; none where there are no embeddings.

        Raises:
            RetokenError: The embeddings are not one for every token of the projection.
        """
        if self._positions is None:
            return ()
        shape = self._holder._parameters[self._positions].shape  # type: ignore[union-attr]
        grid: Any = getattr(self._embed, "grid_size", None)
        size = getattr(self._embed, "image_size", None)
        if grid is None and size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            grid = (height // self.native, width // self.native)
        if grid is None or len(shape) != 3 or shape[1] < math.prod(grid):
            raise RetokenError(
                f"position embeddings of shape {tuple(shape)} do not match the projection's tokens, {grid}: only "
                "models that add one embedding to every token of the first projection can be re-tokenized."
            )
        return tuple(grid)


def interpolate_positions(positions: Tensor, old: Grid, new: Grid, prefix: int) -> Tensor:
    """Position embeddings (1, prefix + h * w, d) of an `old` grid -> of a `new` one; differentiable.

    Bicubic with antialiasing, as timm resamples them.

    Args:
        positions: Embeddings, (1, prefix + h * w, d).
        old: Their rows and columns, (h, w).
        new: Rows and columns of the result.
        prefix: Rows at the front (class and distillation token) that stay.
    """
    head = positions[:, :prefix]
    grid = positions[:, prefix:].unflatten(1, old)  # (1, h, w, d)
    resampled = resample_grid(grid, new)
    return torch.cat([head, resampled.flatten(1, 2)], dim=1)


def resample_grid(grid: Tensor, size: Grid) -> Tensor:
    """Position embeddings of another grid, bicubic with antialiasing as in timm; differentiable.

    Args:
        grid: Embeddings, (1, H, W, C).
        size: Rows and columns (h, w) of the result, (1, h, w, C).
    """
    channels_first = grid.float().permute(0, 3, 1, 2)  # (1, C, H, W)
    resampled = F.interpolate(channels_first, size=size, mode="bicubic", antialias=True)
    return resampled.permute(0, 2, 3, 1).to(grid.dtype)


def _square_convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution of this name, which has one stride and no dilation.

    Raises:
        RetokenError: There is none, it is not square, or another `Retokenizer` holds it.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise RetokenError(f"{type(model).__name__} has no module {name!r}: {error}.") from error
    if not isinstance(module, nn.Conv2d):
        raise RetokenError(f"{name!r} is a {type(module).__name__}, not a Conv2d: only convolutions have a stride.")
    for hook in module._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), Retokenizer):
            raise RetokenError(f"{name!r} is re-tokenized already: use that Retokenizer, or call its restore() first.")
    square = all(height == width for height, width in (module.kernel_size, module.stride))
    if not square or module.dilation != (1, 1):
        raise RetokenError(
            f"{name!r} has kernel {module.kernel_size}, stride {module.stride} and dilation {module.dilation}: only "
            "square kernels and strides without dilation can be re-tokenized."
        )
    return module
