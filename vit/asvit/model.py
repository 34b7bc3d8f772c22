"""The network of a genotype: four stages of windowed attention, no class token, no position embedding."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from ..drop_path import DropPath, set_drop_path
from .genotype import STRIDE, Genotype, GenotypeError


class PatchEmbed(nn.Module):
    """First projection: K x K pixels every `stride` pixels, then LayerNorm.

    The weight is one (C, in, K, K) tensor; `proj.stride` and `proj.dilation` may be changed between steps (progressive
    re-tokenization). The padding follows: the windows' reach minus the stride, so that any stride that divides the
    image gives image_size / stride tokens a side.

    Args:
        kernel: K, in pixels.
        channels: Channels of the image.
        width: C.
    """

    def __init__(self, kernel: int, channels: int, width: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.proj = nn.Conv2d(channels, width, kernel, stride=STRIDE)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, H / stride, W / stride, C).

        Raises:
            GenotypeError: The stride does not divide a side of the images.
        """
        height, width = images.shape[-2:]
        stride = self.proj.stride[0]
        if height % stride or width % stride:
            raise GenotypeError(f"the stride {stride} does not divide images of {height} x {width} pixels.")
        # Negative where the stride outruns the kernel's reach: the uncovered margin is then shared by both sides.
        reach = self.proj.dilation[0] * (self.kernel - 1) + 1
        missing = reach - stride
        before = missing // 2
        after = missing - before
        padded = F.pad(images, (before, after, before, after))
        tokens = self.proj(padded)  # (N, C, H / stride, W / stride)
        return self.norm(tokens.permute(0, 2, 3, 1))


class Merging(nn.Module):
    """Halve the grid: K x K tokens every second token, concatenated, LayerNorm, linear map without bias.

    Args:
        kernel: K, in tokens.
        width: C, channels of a token.
        next_width: Channels after the map.
    """

    def __init__(self, kernel: int, width: int, next_width: int) -> None:
        super().__init__()
        self.kernel = kernel
        merged = kernel**2 * width
        self.norm = nn.LayerNorm(merged)
        self.reduction = nn.Linear(merged, next_width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, ceil(h / 2), ceil(w / 2), 2C); odd grids appear with coarse first strides only."""
        height, width = tokens.shape[1:3]
        before = (self.kernel - 2) // 2
        after = (self.kernel - 1) // 2
        # An odd side takes one more row or column behind, so that no token is left out.
        right = after + width % 2
        below = after + height % 2
        grid = F.pad(tokens.permute(0, 3, 1, 2), (before, right, before, below))  # (N, C, padded h, padded w)
        windows = F.unfold(grid, self.kernel, stride=2)  # (N, C K K, windows)
        windows = windows.transpose(1, 2)
        merged = self.reduction(self.norm(windows))  # (N, windows, 2C)
        return merged.unflatten(1, (math.ceil(height / 2), -1))


class WindowAttention(nn.Module):
    """Self-attention within each of splits x splits windows, without shift.

    Where a coarse grid cannot be cut into that many windows, it is cut into the largest number that divides both.

    Args:
        width: C, channels of a token.
        heads: Attention heads; they divide the width.
        splits: Windows along each side of the grid.
    """

    def __init__(self, width: int, heads: int, splits: int) -> None:
        super().__init__()
        self.heads = heads
        self.splits = splits
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        height, width = tokens.shape[1:3]
        rows = math.gcd(height, self.splits)
        columns = math.gcd(width, self.splits)
        window = (height // rows, width // columns)
        # The layers see whole images, one row a sample: windows are cut between them only.
        x = self.qkv(tokens)  # (N, h, w, 3C)
        x = x.unflatten(3, (3, self.heads, -1))  # (N, h, w, 3, heads, C / heads)
        x = x.unflatten(2, (columns, -1))
        x = x.unflatten(1, (rows, -1))  # (N, rows, y, columns, x, 3, heads, C / heads)
        x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3, N, rows, columns, heads, y, x, C / heads)
        x = x.flatten(1, 3)
        x = x.flatten(3, 4)  # (3, N windows, heads, tokens, C / heads)
        query, key, value = x
        x = F.scaled_dot_product_attention(query, key, value)
        x = x.unflatten(2, window)
        x = x.unflatten(0, (-1, rows, columns))  # (N, rows, columns, heads, y, x, C / heads)
        x = x.permute(0, 1, 4, 2, 5, 3, 6)  # (N, rows, y, columns, x, heads, C / heads)
        return self.proj(x.reshape(tokens.shape))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection that training drops for some samples.

    Args:
        width: C, channels of a token.
        heads: Attention heads.
        splits: Windows along each side of the grid.
        expansion: Hidden width of the MLP over C.
    """

    def __init__(self, width: int, heads: int, splits: int, expansion: int) -> None:
        super().__init__()
        self.drop_path = DropPath()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, splits)
        self.norm2 = nn.LayerNorm(width)
        hidden = expansion * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        attended = self.attn(self.norm1(tokens))
        tokens = tokens + self.drop_path(attended)
        transformed = self.mlp(self.norm2(tokens))
        return tokens + self.drop_path(transformed)


class AsViT(nn.Module):
    """The network of a genotype (As-ViT, section 3), with a Linear-Tanh-Linear head.

    Args:
        genotype: The network.
        num_classes: Outputs of the head.
        image_size: Side of the images, in pixels; a multiple of 32.
        in_channels: Channels of the images.
        drop_path: Largest rate of stochastic depth; it rises linearly over the blocks.

    Raises:
        GenotypeError: The network does not exist at this image size.
        ConfigError: `drop_path` is not in [0, 1).
    """

    def __init__(
        self, genotype: Genotype, num_classes: int, image_size: int, in_channels: int = 3, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        genotype.check(image_size)
        self.genotype = genotype
        self.image_size = image_size
        self._config = {
            "genotype": str(genotype),
            "num_classes": num_classes,
            "image_size": image_size,
            "in_channels": in_channels,
            "drop_path": drop_path,
        }
        widths = genotype.widths
        first_kernel, *merging_kernels = genotype.kernels
        self.embed = PatchEmbed(first_kernel, in_channels, widths[0])
        self.merges = nn.ModuleList()
        for kernel, width, next_width in zip(merging_kernels, widths, widths[1:]):
            self.merges.append(Merging(kernel, width, next_width))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(genotype.depths):
            heads = genotype.stage_heads[stage]
            splits = genotype.splits[stage]
            expansion = genotype.expansions[stage]
            blocks = [Block(widths[stage], heads, splits, expansion) for _ in range(depth)]
            self.stages.append(nn.ModuleList(blocks))
        last = widths[-1]
        self.norm = nn.LayerNorm(last)
        self.head = nn.Sequential(nn.Linear(last, last), nn.Tanh(), nn.Linear(last, num_classes))
        set_drop_path(self, drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: linear weights from a truncated normal of 0.02, biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.LayerNorm)):
                module.reset_parameters()

    def block_groups(self) -> list[list[str]]:
        """Names of the blocks that have one shape, group by group in forward order: one group a stage."""
        groups = []
        for stage, depth in enumerate(self.genotype.depths):
            names = [f"stages.{stage}.{block}" for block in range(depth)]
            groups.append(names)
        return groups

    def tokens(self, images: Tensor) -> Tensor:
        """Tokens of the last stage before the final norm: (N, in, H, W) -> (N, h, w, 8C)."""
        x = self.embed(images)  # (N, H / stride, W / stride, C)
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = self.merges[stage - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
        return x

    def features(self, images: Tensor) -> Tensor:
        """Features of the training-free scores: the mean of `tokens`, (N, in, H, W) -> (N, 8C)."""
        tokens = self.tokens(images)
        return tokens.mean(dim=(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in, H, W) -> logits (N, num_classes)."""
        tokens = self.norm(self.tokens(images))  # (N, h, w, 8C)
        pooled = tokens.mean(dim=(1, 2))
        return self.head(pooled)

    def save_pretrained(self, folder: str | Path, labels: Sequence[str] | None = None) -> None:
        """Write `config.json` (with the genotype) and `model.safetensors`.

        Args:
            folder: Created where it does not exist.
            labels: Names of the classes, for the configuration.

        Raises:
            OSError: The folder cannot be written.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {"architecture": "AsViT", **self._config}
        if labels is not None:
            config["label_names"] = list(labels)
        text = json.dumps(config, indent=2) + "\n"
        (path / "config.json").write_text(text, encoding="utf-8")
        save_model(self, str(path / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AsViT:
        """The network that `save_pretrained` wrote, ready to evaluate.

        Raises:
            GenotypeError: The folder holds no As-ViT checkpoint, or one that is damaged.
        """
        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            genotype = Genotype.parse(config["genotype"], {})
            sizes = {name: config[name] for name in ("num_classes", "image_size", "in_channels", "drop_path")}
            model = cls(genotype, **sizes)
            weights = load_file(path / "model.safetensors")
            model.load_state_dict(weights)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise GenotypeError(f"{str(path)!r} holds no complete As-ViT checkpoint: {error}.") from error
        return model.eval()
