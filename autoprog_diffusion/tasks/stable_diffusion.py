"""Stable-Diffusion-class pipelines: loading, text embeddings, and the training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.training.arguments import Arguments

from .loading import check_unet, load_as
from .objective import denoising_loss, denoising_target, draw_noise, draw_timesteps


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


def load_pipeline(name: str, args: Arguments) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline without its safety checker, in float32.

    Raises:
        GrowthError: The folder or Hub name cannot be loaded, or is another kind of pipeline.
    """
    words = "a Stable Diffusion pipeline (a Diffusers folder with unet, vae, text_encoder, tokenizer and scheduler)"
    options = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = load_as(StableDiffusionPipeline, words, name, args, **options)
    check_unet(name, pipeline, None)
    return pipeline


def training_scheduler(pipeline: Any, args: Arguments) -> Any:
    """The DDPM scheduler with the settings the pipeline was trained with."""
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    if args.train.prediction_type is not None:
        scheduler.register_to_config(prediction_type=args.train.prediction_type)
    return scheduler


class TextToImage:
    """What a training loop needs of a Stable-Diffusion-class pipeline: batches in, loss out.

    Args:
        pipeline: Its VAE and text encoder are frozen and moved to the device.
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
        self.pipeline, self.data, self.args, self.accelerator = pipeline, data, args, accelerator
        self.resolution = resolution
        self.noise_scheduler = training_scheduler(pipeline, args)
        self.latents = Latents(pipeline.vae, data, args, accelerator, resolution)
        self.captions = Captions(data["text"], self.encode, self.encoders(), args, accelerator, empty)

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready."""
        self.captions.ready()
        self.latents.enter_stage(growth)

    def loss(self, denoiser: Any, batch: dict[str, Tensor]) -> Tensor:
        """Denoising loss of one batch, () float32.

        Args:
            denoiser: The prepared UNet.
            batch: As `Latents.draw` takes it.
        """
        return self.weighted(*self.denoise(denoiser, batch))

    def denoise(self, denoiser: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One pass: prediction and target (N, C, h, w), and the (N,) timesteps."""
        latents = self.latents.draw(batch)
        conditions = self.conditions(batch)
        noise, mixed = draw_noise(latents, self.args.train)
        timesteps = draw_timesteps(len(latents), self.noise_scheduler, self.args.train, latents.device)
        noisy = self.noise_scheduler.add_noise(latents, mixed, timesteps)
        target = denoising_target(self.noise_scheduler, latents, noise, timesteps)
        return denoiser(noisy, timesteps, **conditions, return_dict=False)[0], target, timesteps

    def weighted(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of a pass, weighted as the arguments say, () float32."""
        return denoising_loss(prediction, target, timesteps, self.noise_scheduler, self.args.train.snr_gamma)

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the UNet is told beside the timestep."""
        return {"encoder_hidden_states": self.captions.draw(batch["index"])[0]}

    def encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders."""
        return [self.pipeline.text_encoder]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> (N, tokens, width), and nothing pooled (N, 0)."""
        ids = self.pipeline.tokenizer(
            captions,
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        tokens = self.pipeline.text_encoder(ids.to(self.accelerator.device), return_dict=False)[0]
        return tokens, tokens.new_zeros(len(tokens), 0)
