"""Text-to-image transformers that are trained by denoising, such as PixArt-Sigma."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from autoprog_diffusion.data.captions import Embeddings
from autoprog_diffusion.data.latents import Batch
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth.errors import ConfigError

from .families.text import check_length, fit_length
from .flow_matching import flow_family, text_encoders, text_length
from .learned_variance import loss_with_variance
from .objective import NoisyBatch, add_drawn_noise, add_noise
from .stable_diffusion import TextToImage
from .text_length import Reader


@dataclass(eq=False)
class TextDenoising(TextToImage):
    """Training task of a transformer that predicts noise from text, and perhaps the noise's variance.

    Attributes:
        max_sequence_length: Tokens of text; None takes the pipeline's own number. The other attributes are those of
            `TextToImage`.

    Raises:
        ConfigError: A setting is out of range, or the variance has no loss for the prediction type.
    """

    _: KW_ONLY
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        self.family = flow_family(self.pipeline)
        length = text_length(self.pipeline, self.max_sequence_length)
        check_length(self.family, length)
        latents = self.latents
        self._length = fit_length(self.family, length, latents.data["text"][:], latents.accelerator.print)
        config = self.family.config
        self.trains_variance = config.out_channels == 2 * config.in_channels
        super().__post_init__()
        kind = self.noise_scheduler.config.prediction_type
        if self.trains_variance and kind != "epsilon":
            raise ConfigError(
                f"--prediction_type {kind} is not allowed: this transformer predicts a variance too, whose loss needs "
                "epsilon. Leave the flag out."
            )

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of one batch, () float32, plus the variational bound of a learned variance.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        clean = self.latents.draw(batch)
        text = self.captions.draw(batch["index"], batch.get("draw"))
        return self._objective(denoiser, clean, add_noise(clean, self.noise_scheduler, self.noise), text=text)

    def held_out_losses(self, denoiser: Any, batch: Batch, draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the timesteps of a draw, (N,) float32; no caption is dropped.

        Args:
            denoiser: The transformer.
            batch: As `Latents.draw` takes it.
            draw: Of the batch.
        """
        clean = self.latents.draw(batch, partial(draw.noise, stream=1))
        with self.captions.all_kept():
            text = self.captions.draw(batch["index"], batch.get("draw"))
        noisy = add_drawn_noise(clean, self.noise_scheduler, draw)
        return self._objective(denoiser, clean, noisy, text=text, each=True)

    def readers(self) -> list[Reader]:
        """None: what is cut was said when the length was chosen."""
        return []

    def encoders(self) -> list[nn.Module]:
        """The pipeline's text encoders."""
        return text_encoders(self.pipeline)

    def encode(self, captions: list[str]) -> Embeddings:
        """Captions -> (N, L, D) tokens, and what the family keeps beside them."""
        return self.family.encode(captions, self._length)

    def _objective(
        self, denoiser: Any, clean: Tensor, noisy: NoisyBatch, *, text: Embeddings, each: bool = False
    ) -> Tensor:
        """Error of the prediction, plus the variational bound where the variance is learned."""
        tokens, pooled = text
        return loss_with_variance(
            self.family.predict(denoiser, noisy.latents, noisy.timesteps, tokens=tokens, pooled=pooled),
            clean=clean,
            noisy=noisy,
            noise_scheduler=self.noise_scheduler,
            snr_gamma=self.noise.snr_gamma,
            trains_variance=self.trains_variance,
            each=each,
        )
