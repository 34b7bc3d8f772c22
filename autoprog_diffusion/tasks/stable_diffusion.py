"""Stable-Diffusion-class pipelines: loading, text embeddings, and the training loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from autoprog_diffusion.data.captions import Captions, Embeddings
from autoprog_diffusion.data.latents import Batch, Latents
from autoprog_diffusion.evaluation.draws import Draw

from .loading import load_as
from .noise_schedule import adopt_schedule, check_denoising, training_scheduler
from .objective import NoiseSettings, add_drawn_noise, add_noise, denoising_loss, denoising_losses
from .parts import check_class, check_unet, check_unet_text, check_vae
from .text_length import Reader, cut_texts, different


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


@dataclass(frozen=True)
class CaptionSettings:
    """Captions."""

    proportion_empty_prompts: float = 0.0
    """Probability of training an image without its caption, for classifier-free guidance."""


def load_pipeline(name: str, **hub: str | None) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline in float32; arguments as `from_pretrained` takes them.

    Raises:
        GrowthError: It cannot be loaded, is another kind of pipeline, or has a part that is not trained with.
    """
    words = "a Stable Diffusion pipeline (a Diffusers folder with unet, vae, text_encoder, tokenizer and scheduler)"
    pipeline = load_as(StableDiffusionPipeline, words, name, **hub)
    check_unet(name, pipeline, None)
    check_vae(name, pipeline.vae)
    check_class(
        name,
        part="text encoder",
        model=pipeline.text_encoder,
        kinds=(CLIPTextModel,),
    )
    check_unet_text(name, pipeline)
    check_denoising(name, pipeline.scheduler)
    return pipeline


@dataclass(eq=False)
class TextToImage:
    """Training task of a Stable-Diffusion-class pipeline: batches to losses.

    Attributes:
        pipeline: Its text encoder is frozen and moved to the device.
        latents: Of the training images; their data has a column `text`.
        noise: Settings of the objective.
        empty: Probability of training an image without its caption, for classifier-free guidance.

    Raises:
        ConfigError: The probability is not in [0, 1].
    """

    pipeline: Any
    latents: Latents
    noise: NoiseSettings
    _: KW_ONLY
    empty: float = 0.0

    def __post_init__(self) -> None:
        latents = self.latents
        self.resolution = latents.resolution
        self.noise_scheduler = training_scheduler(self.pipeline, self.noise.prediction_type)
        texts = latents.data["text"][:]
        for sentence in cut_texts(self.readers(), different(texts)):
            latents.accelerator.print(sentence)
        self.captions = Captions(
            texts,
            self.encode,
            self.encoders(),
            latents.accelerator,
            folder=latents.folder,
            empty=self.empty,
            dtype=latents.dtype,
        )

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready; from now on the pipeline samples what is trained."""
        adopt_schedule(self.pipeline, self.noise_scheduler)
        self.captions.ready()
        self.latents.enter_stage(growth)

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of one batch, () float32.

        Args:
            denoiser: The prepared UNet.
            batch: As `Latents.draw` takes it.
        """
        return self.weighted(*self.denoise(denoiser, batch))

    def held_out_losses(self, denoiser: Any, batch: Batch, draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the timesteps of a draw, (N,) float32; no caption is dropped.

        Args:
            denoiser: The UNet.
            batch: As `Latents.draw` takes it.
            draw: Of the batch.
        """
        clean = self.latents.draw(batch, partial(draw.noise, stream=1))
        with self.captions.all_kept():
            conditions = self.conditions(batch)
        noisy = add_drawn_noise(clean, self.noise_scheduler, draw)
        return denoising_losses(
            denoiser(noisy.latents, noisy.timesteps, **conditions, return_dict=False)[0],
            target=noisy.target,
            timesteps=noisy.timesteps,
            noise_scheduler=self.noise_scheduler,
            snr_gamma=self.noise.snr_gamma,
        )

    def denoise(self, denoiser: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: prediction and target (N, C, h, w), and the (N,) timesteps."""
        clean = self.latents.draw(batch)
        conditions = self.conditions(batch)
        noisy = add_noise(clean, self.noise_scheduler, self.noise)
        prediction = denoiser(noisy.latents, noisy.timesteps, **conditions, return_dict=False)[0]
        return prediction, noisy.target, noisy.timesteps

    def weighted(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of a pass, weighted by `noise.snr_gamma`, () float32."""
        return denoising_loss(
            prediction,
            target=target,
            timesteps=timesteps,
            noise_scheduler=self.noise_scheduler,
            snr_gamma=self.noise.snr_gamma,
        )

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """Inputs of the UNet beside latents and timesteps."""
        tokens, _ = self.captions.draw(batch["index"], batch.get("draw"))
        return {"encoder_hidden_states": tokens}

    def encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders."""
        return [self.pipeline.text_encoder]

    def readers(self) -> list[Reader]:
        """The pipeline's tokenizers, of which a checkpoint may lack some: each reads as many tokens as it says."""
        tokenizers = {part: getattr(self.pipeline, part, None) for part in ("tokenizer", "tokenizer_2")}
        found = {part: tokenizer for part, tokenizer in tokenizers.items() if tokenizer is not None}
        return [Reader(part, tokenizer, tokenizer.model_max_length) for part, tokenizer in found.items()]

    def encode(self, captions: list[str]) -> Embeddings:
        """Captions -> (N, tokens, width), and nothing pooled (N, 0)."""
        tokenizer = self.pipeline.tokenizer
        encoder = self.pipeline.text_encoder
        device = self.latents.accelerator.device
        words = tokenizer(
            captions,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        # As the pipeline does: some encoders see the padding, some do not.
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = words.attention_mask.to(device) if masked else None
        tokens = encoder(words.input_ids.to(device), attention_mask=mask, return_dict=False)[0]
        return tokens, tokens.new_zeros(len(tokens), 0)
