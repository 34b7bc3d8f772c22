"""DreamBooth's loss on Stable Diffusion XL and on transformers: the subject's, and the weighted one of its class."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from autoprog_diffusion.data.latents import Batch, Latents
from autoprog_diffusion.growth.errors import GrowthError

from .dreambooth import Dreambooth, in_one_row
from .flow_flags import check_flow_flags
from .flow_matching import FlowMatching, FlowSettings, flow_family, is_flow
from .objective import NoiseSettings
from .sdxl import TextToImageXL


@dataclass(eq=False)
class DreamboothXL(Dreambooth, TextToImageXL):
    """Of a Stable Diffusion XL pipeline, which is told the images' sizes; attributes as those of `Dreambooth`."""


@dataclass(eq=False)
class DreamboothFlow(FlowMatching):
    """Of a flow-matching pipeline.

    Attributes:
        prior_loss_weight: Weight of the loss on the class; the other attributes are those of `FlowMatching`.
    """

    _: KW_ONLY
    prior_loss_weight: float = 1.0

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Loss of one batch, () float32.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it; with a second axis of two, subject and class.
        """
        if batch["index"].dim() == 1:
            return super().loss(denoiser, batch)
        subject, prior = self.errors(denoiser, in_one_row(batch)).chunk(2)
        return subject.mean() + self.prior_loss_weight * prior.mean()


def dreambooth_task(
    pipeline: Any, latents: Latents, *, flow: FlowSettings, noise: NoiseSettings, prior_loss_weight: float
) -> Dreambooth | DreamboothFlow:
    """The task of a pipeline of any kind.

    Args:
        pipeline: Of Stable Diffusion, Stable Diffusion XL, or one of the families.
        latents: Of the pictures of the subject, and of its class.
        flow: Settings of flow matching; for other pipelines only the dropout of captions.
        noise: Settings of the denoising objective.
        prior_loss_weight: Weight of the loss on the class.

    Raises:
        GrowthError: The pipeline is of a family that is trained by denoising.
        ConfigError: A flag belongs to another objective.
    """
    if is_flow(pipeline):
        if flow_family(pipeline).process != "flow":
            raise GrowthError(
                f"a {type(pipeline).__name__} is not taught a subject here: train it on captioned pictures with "
                "finetune_flow.py, or choose another model."
            )
        return DreamboothFlow(pipeline, latents, flow, noise, prior_loss_weight=prior_loss_weight)
    check_flow_flags(flow)
    kind = DreamboothXL if isinstance(pipeline, StableDiffusionXLPipeline) else Dreambooth
    empty = flow.proportion_empty_prompts
    return kind(pipeline, latents, noise, empty=empty, prior_loss_weight=prior_loss_weight)
