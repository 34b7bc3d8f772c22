"""Stable Diffusion XL: two text encoders, pooled text, and size conditioning that follows the stage's resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor, nn

from autoprog_diffusion.data.cache import ArrayCache
from autoprog_diffusion.data.captions import Embeddings
from autoprog_diffusion.data.image_sizes import measure_images
from autoprog_diffusion.data.images import centre_corners, fitted_window
from autoprog_diffusion.data.latents import Batch

from .loading import load_as
from .noise_schedule import check_denoising
from .parts import check_unet, check_unet_text, check_vae
from .stable_diffusion import TextToImage


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


@dataclass(frozen=True)
class SDXLSettings:
    """Stable Diffusion XL."""

    proportion_empty_prompts: float = 0.0
    """Probability of training an image without its caption, for classifier-free guidance."""


def load_sdxl(name: str, **hub: str | None) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline, by its folder or Hub name and options of `from_pretrained`.

    It is in float32: its VAE overflows in float16.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    words = "a Stable Diffusion XL pipeline (a Diffusers folder with unet, vae, two text encoders and tokenizers)"
    pipeline = load_as(StableDiffusionXLPipeline, words, name, **hub)
    check_unet(name, pipeline, "text_time")
    check_vae(name, pipeline.vae, ("latents_mean", "latents_std"))
    check_unet_text(name, pipeline)
    check_denoising(name, pipeline.scheduler)
    return pipeline


@dataclass(eq=False)
class TextToImageXL(TextToImage):
    """Training task of a Stable Diffusion XL pipeline; arguments as those of `TextToImage`.

    The UNet is told every image's own size, where its part was cut, and the size of that part as the target size.
    """

    _sizes: ArrayCache | None = None

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready, and the images' sizes."""
        super().enter_stage(growth)
        if self._sizes is not None or not self.latents.cached:
            return
        self._sizes = measure_images(self.latents.data, self.latents.folder, self.latents.accelerator)

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """Both encoders' tokens (N, L, D), pooled text (N, P), and the six sizes (N, 6) in pixels."""
        tokens, pooled = self.captions.draw(batch["index"], batch.get("draw"))
        added = {"text_embeds": pooled, "time_ids": self.sizes(batch).to(tokens)}
        return {"encoder_hidden_states": tokens, "added_cond_kwargs": added}

    def sizes(self, batch: Batch) -> Tensor:
        """(N, 6): height and width of the image, top and left of the crop, height and width of the target."""
        height, width = self.latents.size_of(batch)
        if "window" in batch:
            original, crop = batch["window"].float().cpu().split(2, dim=1)
            crop = self._reduced(crop, batch["pixel_values"].shape, height, width)
        else:
            assert self._sizes is not None
            original = self._sizes[batch["index"]]
            # Cached latents are of the centre.
            crop = centre_corners(original, height, width).float()
        target = torch.tensor([height, width]).expand_as(crop)
        return torch.cat([original, crop, target], dim=1)

    def _reduced(self, crop: Tensor, shape: torch.Size, height: int, width: int) -> Tensor:
        """(N, 2) top and left of parts that were cut at the full resolution, and then reduced to the stage's.

        Args:
            crop: (N, 2) in pixels of the full resolution.
            shape: Of the parts, (N, 3, H, W).
            height: Of the stage's images in pixels.
            width: Of the stage's images in pixels.
        """
        top, left, tall, wide = fitted_window(shape[2], shape[3], height, width)
        corner = crop + torch.tensor([top, left])
        return corner * torch.tensor([height / tall, width / wide])

    def encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders, of which a checkpoint may lack the first."""
        return list(filter(None, (self.pipeline.text_encoder, self.pipeline.text_encoder_2)))

    def encode(self, captions: list[str]) -> Embeddings:
        """Captions -> (N, L, D) of both encoders side by side, and the second one's pooled (N, P)."""
        device = self.latents.accelerator.device
        tokens, _, pooled, _ = self.pipeline.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
        if self.empty and self.pipeline.config.force_zeros_for_empty_prompt:
            # The unconditional half of the pipeline's guidance is zeros, not the embedding of an empty text.
            given = torch.tensor([bool(caption) for caption in captions], device=tokens.device)
            tokens = tokens * given.view(-1, 1, 1)
            pooled = pooled * given.view(-1, 1)
        return tokens, pooled
