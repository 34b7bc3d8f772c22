"""Flags of flow matching beside pipelines that are trained by denoising."""

from __future__ import annotations

from autoprog_diffusion.growth.errors import ConfigError

from .flow_matching import FlowSettings


OF_FLOW = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "guidance", "num_frames")


def check_flow_flags(flow: FlowSettings, *, takes_length: bool = False) -> None:
    """Refuse flags of flow matching for a pipeline that is trained by denoising.

    Args:
        flow: The flags.
        takes_length: Whether the pipeline can be told how many tokens of text it takes.

    Raises:
        ConfigError: The message names the flag.
    """
    plain = FlowSettings()
    for name in OF_FLOW if takes_length else (*OF_FLOW, "max_sequence_length"):
        if getattr(flow, name) != getattr(plain, name):
            raise ConfigError(
                f"--{name} is for flow matching, as of SD3 and Flux, and this pipeline is trained by denoising: "
                "remove the flag."
            )
