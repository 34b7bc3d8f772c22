"""Stable Diffusion XL: two text encoders, pooled text, and size conditioning that follows the stage's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor, nn

from autoprog_diffusion.data.cache import ArrayCache, build_cache, text_fingerprint
from autoprog_diffusion.data.images import read_image
from autoprog_diffusion.training.arguments import Arguments

from .loading import check_unet, load_as
from .stable_diffusion import TextToImage


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


@dataclass(frozen=True)
class XLArguments:
    """Stable Diffusion XL."""

    proportion_empty_prompts: float = 0.0
    """Probability of training an image without its caption, for classifier-free guidance."""


@dataclass(frozen=True)
class SDXLArguments(Arguments):
    """All groups of arguments, and Stable Diffusion XL's."""

    xl: tyro.conf.OmitArgPrefixes[XLArguments] = field(default_factory=XLArguments)


def load_sdxl(name: str, args: Arguments) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline, in float32: its VAE overflows in float16.

    Raises:
        GrowthError: The folder or Hub name cannot be loaded, or is another kind of pipeline.
    """
    words = "a Stable Diffusion XL pipeline (a Diffusers folder with unet, vae, two text encoders and tokenizers)"
    pipeline = load_as(StableDiffusionXLPipeline, words, name, args)
    check_unet(name, pipeline, "text_time")
    return pipeline


class TextToImageXL(TextToImage):
    """What a training loop needs of a Stable Diffusion XL pipeline: batches in, loss out.

    The UNet is told every image's own size, where its square was cut, and the stage's resolution as the target size.

    Args:
        pipeline: Its VAE and text encoders are frozen and moved to the device.
        data: Columns `image` and `text`.
        args: The recipe's arguments.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.
        empty: Probability of training an image without its caption.

    Raises:
        ConfigError: The probability is not in [0, 1].
    """

    def __init__(
        self,
        pipeline: Any,
        data: datasets.Dataset,
        args: Arguments,
        accelerator: Accelerator,
        resolution: int,
        empty: float = 0.0,
    ) -> None:
        super().__init__(pipeline, data, args, accelerator, resolution, empty)
        self._sizes: ArrayCache | None = None

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready, and the images' sizes."""
        super().enter_stage(growth)
        if self._sizes is None and self.args.data.cache_latents:
            path = Path(self.args.output.output_dir) / "cache" / "sizes.npy"
            mark = text_fingerprint("sizes", self.data._fingerprint, len(self.data))
            self._sizes = build_cache(
                path, len(self.data), self._measure, mark, self.accelerator, batch_size=64, title="measuring images"
            )

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Both encoders' tokens (N, L, D), pooled text (N, P), and the six sizes (N, 6) in pixels."""
        tokens, pooled = self.captions.draw(batch["index"])
        added = {"text_embeds": pooled, "time_ids": self.sizes(batch).to(tokens)}
        return {"encoder_hidden_states": tokens, "added_cond_kwargs": added}

    def sizes(self, batch: dict[str, Tensor]) -> Tensor:
        """(N, 6): height and width of the image, top and left of the crop, height and width of the target."""
        side = self.latents.side
        if "window" in batch:
            original, crop = batch["window"].float().cpu().split(2, dim=1)
            crop = crop * side / self.resolution  # cut at the full resolution, then reduced to the stage's
        else:
            assert self._sizes is not None
            original = self._sizes[batch["index"]]
            scaled = (original * (side / original.amin(dim=1, keepdim=True))).round().clamp(min=side)
            crop = (scaled - side).div(2, rounding_mode="floor")  # cached latents are of the centre
        return torch.cat([original, crop, torch.full_like(crop, side)], dim=1)

    def encoders(self) -> list[nn.Module]:
        return [encoder for encoder in (self.pipeline.text_encoder, self.pipeline.text_encoder_2) if encoder]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> (N, L, D) of both encoders side by side, and the second one's pooled (N, P)."""
        device = self.accelerator.device
        tokens, _, pooled, _ = self.pipeline.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
        return tokens, pooled

    def _measure(self, rows: Sequence[int]) -> Tensor:
        """Row numbers -> (len, 2) height and width in pixels."""
        return torch.tensor([read_image(self.data, row).size[::-1] for row in rows])
