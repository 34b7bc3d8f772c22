"""Stable-Diffusion-class pipelines: loading, text embeddings, and the training loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions, Embeddings
from autoprog_diffusion.data.latents import Batch, Latents

from .loading import check_unet, load_as
from .objective import NoiseSettings, add_noise, denoising_loss


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


def load_pipeline(name: str, **hub: str | None) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline in float32, without its safety checker; arguments as `from_pretrained` takes them.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    words = "a Stable Diffusion pipeline (a Diffusers folder with unet, vae, text_encoder, tokenizer and scheduler)"
    pipeline = load_as(StableDiffusionPipeline, words, name, safety_checker=None, requires_safety_checker=False, **hub)
    check_unet(name, pipeline, None)
    return pipeline


def training_scheduler(pipeline: Any, prediction_type: str | None = None) -> Any:
    """The DDPM scheduler with the settings that the pipeline was trained with; `prediction_type` replaces its own."""
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    if prediction_type is not None:
        scheduler.register_to_config(prediction_type=prediction_type)
    return scheduler


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
        self.captions = Captions(
            latents.data["text"][:],
            self.encode,
            self.encoders(),
            latents.accelerator,
            folder=latents.folder,
            empty=self.empty,
        )

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready."""
        self.captions.ready()
        self.latents.enter_stage(growth)

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of one batch, () float32.

        Args:
            denoiser: The prepared UNet.
            batch: As `Latents.draw` takes it.
        """
        return self.weighted(*self.denoise(denoiser, batch))

    def denoise(self, denoiser: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: prediction and target (N, C, h, w), and the (N,) timesteps."""
        clean = self.latents.draw(batch)
        conditions = self.conditions(batch)
        noisy = add_noise(clean, self.noise_scheduler, self.noise)
        prediction = denoiser(noisy.latents, noisy.timesteps, **conditions, return_dict=False)[0]
        return prediction, noisy.target, noisy.timesteps

    def weighted(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of a pass, weighted by `noise.snr_gamma`, () float32."""
        return denoising_loss(prediction, target, timesteps, self.noise_scheduler, snr_gamma=self.noise.snr_gamma)

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """Inputs of the UNet beside latents and timesteps."""
        tokens, _ = self.captions.draw(batch["index"], batch.get("draw"))
        return {"encoder_hidden_states": tokens}

    def encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders."""
        return [self.pipeline.text_encoder]

    def encode(self, captions: list[str]) -> Embeddings:
        """Captions -> (N, tokens, width), and nothing pooled (N, 0)."""
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(
            captions,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        tokens = self.pipeline.text_encoder(ids.to(self.latents.accelerator.device), return_dict=False)[0]
        return tokens, tokens.new_zeros(len(tokens), 0)
