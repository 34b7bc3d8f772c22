"""`Family`: what a family of text-to-image transformers decides; every row is one subclass in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Embeddings
from autoprog_diffusion.growth.errors import ConfigError, GrowthError

from ..noise_schedule import FLOW, check_flow
from ..parts import check_statistics, check_vae, check_widths
from ..text_length import Reader
from .shift import stage_shift


@dataclass(frozen=True)
class Family(ABC):
    """A pipeline, and how its own call encodes text, packs latents, tells the time and reads the output.

    Attributes:
        pipeline: Of the class that the family names.
        guidance: Value of the guidance embedding of a guidance-distilled model; others have none.
        frames: Of the videos that are trained on; 1 for pictures.
        pipeline_class: Name of the pipeline's class in Diffusers.
        transformer_class: Name of the class of its denoiser.
        vae_class: Name of the class of its VAE.
        vae_follows: Settings of the VAE beside `scaling_factor` that the pipeline's call follows.
        guidance_scale: The pipeline's own scale of classifier-free guidance, for pictures.
        most_text: Tokens of text that the pipeline's call takes by itself.
        limit: Tokens of text that it takes at most.
        trims: Whether padding of the text has no effect, so that texts are kept no longer than the longest.
        packed: Whether the pipeline packs latents into tokens before the transformer.
        optional: Parts that it works without, and that Diffusers loads it without only if told so.
        schedulers: Names of the schedulers that it is trained with.
        text_setting: Setting of the denoiser that is the width of its text.
        process: How noise comes in: straight to it (`flow`), or as in DDPM (`denoising`).
    """

    pipeline: Any
    guidance: float
    frames: int = 1

    pipeline_class: ClassVar[str]
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str] = "AutoencoderKL"
    vae_follows: ClassVar[tuple[str, ...]] = ("shift_factor",)
    guidance_scale: ClassVar[float]
    most_text: ClassVar[int]
    limit: ClassVar[int] = 512
    trims: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    optional: ClassVar[tuple[str, ...]] = ()
    schedulers: ClassVar[tuple[str, ...]] = FLOW
    text_setting: ClassVar[str] = "joint_attention_dim"
    process: ClassVar[Literal["flow", "denoising"]] = "flow"

    @property
    def patch(self) -> int:
        """Latents per token and side; pipelines that pack them do so in twos."""
        return 2 if self.packed else self.config.patch_size

    @property
    def config(self) -> Any:
        """Configuration of the denoiser."""
        return self.pipeline.transformer.config

    @property
    def token_side(self) -> int:
        """Pixels per token and side."""
        return self.vae_factor * self.patch

    @property
    def vae_factor(self) -> int:
        """Pixels per latent and side."""
        return self.pipeline.vae_scale_factor

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.pipeline.default_sample_size * self.vae_factor

    def largest(self) -> int | None:
        """Largest side of an image in pixels; None where positions have no end."""
        return None

    def lora_targets(self) -> tuple[str, ...]:
        """Last parts of the names of the layers that a LoRA adapts by default: attention's."""
        return ("to_k", "to_q", "to_v", "to_out.0")

    def idle(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters that nothing of the output depends on: they never train."""
        return ()

    def rest_idle(self) -> None:
        """Let those parameters require no gradient: several processes wait for that of every other one."""
        for name, parameter in self.pipeline.transformer.named_parameters():
            if name.startswith(self.idle()):
                parameter.requires_grad_(False)

    def check(self, name: str) -> None:
        """Refuse parts that do not fit each other; `name` is the pipeline's.

        Raises:
            GrowthError: The message names the values.
        """
        self.check_scheduler(name)
        check_named(name, part="transformer", model=self.pipeline.transformer, kind=self.transformer_class)
        check_named(name, part="VAE", model=self.pipeline.vae, kind=self.vae_class)
        if self.vae_class == "AutoencoderKL":
            check_vae(name, self.pipeline.vae, self.vae_follows)
        else:
            check_statistics(name, self.pipeline.vae)
        self.check_latents(name)
        self.check_text(name)

    def check_scheduler(self, name: str) -> None:
        """Refuse a scheduler of another process.

        Raises:
            GrowthError: The message names the class or the setting.
        """
        check_flow(name, self.pipeline.scheduler, self.schedulers)

    def check_latents(self, name: str) -> None:
        """Refuse a transformer that does not take and give one latent image.

        Raises:
            GrowthError: The message names the channels.
        """
        packed = self.latent_channels() * self.packs()
        found = (self.config.in_channels, self.output_channels())
        if found != (packed, packed):
            as_packed = " when packed" if self.packs() > 1 else ""
            raise GrowthError(
                f"the transformer of {name} takes {found[0]} channels and gives {found[1]}, and its VAE gives "
                f"{packed}{as_packed}: models for filling, depth and other images as input are not trained."
            )

    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.pipeline.vae.config.latent_channels

    def packs(self) -> int:
        """Latents in one token of the transformer's input; 1 where it packs them itself."""
        return self.patch**2 if self.packed else 1

    def output_channels(self) -> int:
        """Channels of the transformer's output."""
        return self.config.out_channels or self.config.in_channels

    def check_frames(self) -> None:
        """Refuse a number of frames that the pipeline does not make.

        Raises:
            ConfigError: The message names the number and those allowed.
        """
        if self.frames != 1:
            raise ConfigError(
                f"--num_frames {self.frames} is not allowed: a {self.pipeline_class} makes pictures, and only Wan "
                "makes videos. Remove the flag."
            )

    def check_text(self, name: str) -> None:
        """Refuse text encoders that do not fit the transformer.

        Raises:
            GrowthError: The message names both widths.
        """
        width = self.pipeline.text_encoder.config.get_text_config().hidden_size
        check_widths(
            name,
            text=width,
            wanted=self.config[self.text_setting],
            setting=self.text_setting,
        )

    def readers(self, length: int) -> list[Reader]:
        """What each tokenizer is given of a caption, and how many tokens it keeps when `length` are asked for."""
        return [Reader("tokenizer", self.pipeline.tokenizer, length)]

    @abstractmethod
    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, L, D) tokens, and (len, P) pooled text or the (len, L) mask of the tokens."""

    @abstractmethod
    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """What the denoiser is trained to give, by a call as the pipeline makes it.

        Args:
            denoiser: The transformer, perhaps prepared.
            noisy: (N, C, ...) latents with noise.
            times: (N,) in [0, 1], 1 being noise; whole timesteps where the process is `denoising`.
            tokens: (N, L, D) text.
            pooled: (N, P), as `encode` gives it.

        Returns:
            The predicted noise less latents, shaped as `noisy`; with `denoising` the output as it is.
        """

    def shift(self, tokens: int, full_tokens: float) -> float:
        """Shift of time for images of so many tokens; arguments as `stage_shift` takes them."""
        return stage_shift(self.pipeline.scheduler.config, tokens, full_tokens)

    def drawing(self, scale: float, length: int) -> dict[str, Any]:
        """Arguments of the pipeline's call for pictures as trained.

        Args:
            scale: Of classifier-free guidance.
            length: Tokens of text.
        """
        return {"guidance_scale": scale, "max_sequence_length": length}

    def pictures(self, output: Any) -> list[Image.Image]:
        """The pictures in what the pipeline's call returns."""
        return output.images


def check_named(name: str, *, part: str, model: nn.Module, kind: str) -> None:
    """Refuse a part of another class.

    Raises:
        GrowthError: The message names both classes.
    """
    if kind not in [parent.__name__ for parent in type(model).__mro__]:
        raise GrowthError(f"the {part} of {name} is a {type(model).__name__}: only {kind} is trained with here.")
