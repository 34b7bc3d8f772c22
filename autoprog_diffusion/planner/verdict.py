"""Whether a plan is worth it, in words, by what was measured of its like."""

from __future__ import annotations

from dataclasses import replace

from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.presets import FIRST_FREEZE, FIRST_FREEZE_JOINT, freezing_from

from .planned import Planned
from .quality import AVERAGED, measured, quality_of
from .settings import Plan


WORTH = 1.05  # a plan that saves less is not worth it


def judged(planned: Planned, config: GrowthConfig) -> Planned:
    """A plan with what its stages lose, and whether they are worth it.

    Args:
        planned: The plan.
        config: Of its stages.
    """
    trained = name_of(config)
    planned = replace(
        planned,
        trained=trained,
        quality=quality_of(Plan("", config.to_dict()), trained),
    )
    return replace(planned, verdict=verdict(planned))


def name_of(config: GrowthConfig) -> str:
    """What trains, as the table of qualities names it.

    Args:
        config: Of the run.
    """
    if config.num_stages == 1:
        return "full"
    for start in (FIRST_FREEZE, FIRST_FREEZE_JOINT):
        if config.freezes and config.boundaries == freezing_from(start)["boundaries"]:
            return f"freeze from {start:.0%}"
    if config.direction == "window":
        return f"window {config.num_stages // config.sweeps}"
    direction = "freeze" if config.freezes else "unfreeze"
    return direction if config.order == "suffix" else f"{direction}, {config.order}"


def verdict(planned: Planned) -> str:
    """Whether growth is worth it, in words."""
    text = f"{judgement(planned.trained)} {saving(planned.share)}"
    if planned.machine is None:
        return text
    fitting = [candidate.family for candidate, _ in planned.best]
    if not fitting:
        return f"Nothing fits this memory. {text}"
    if "full" not in fitting:
        others = " or ".join(sorted({*fitting}))
        return f"Full fine-tuning does not fit this memory; {others} does. Where it fits: {text}"
    return text


def saving(share: float) -> str:
    """What a plan saves, in words.

    Args:
        share: Of the FLOPs of as many steps of full fine-tuning.
    """
    if share == 1:
        return "The plan takes the FLOPs of full fine-tuning."
    change = f"{1 - share:.0%} fewer" if share < 1 else f"{share - 1:.0%} more"
    return f"The plan takes {change} FLOPs than as many steps of full fine-tuning."


def judgement(trained: str) -> str:
    """Whether stages are worth it for speed, by what was measured of them.

    Args:
        trained: Their name in the table of qualities.
    """
    if trained == "full":
        return "The plan is full fine-tuning."
    against = measured("trained", trained, "against_shorter")
    if against is None:
        return f"Whether growth is worth it here is not known: {trained} was not measured."
    subject = f"{trained} with an average of the weights" if trained.startswith(AVERAGED) else trained
    lowest = min(against)
    highest = max(against)
    times = f"{lowest:.2f}" if lowest == highest else f"{lowest:.2f} to {highest:.2f}"
    reason = f"by our measurements a shorter full run needs {times} times the FLOPs of {subject} for the same loss."
    if lowest >= WORTH:
        return f"Growth is worth it: {reason}"
    if highest > WORTH:
        return f"Growth is not worth it for speed alone, a shorter full run is as good: {reason}"
    return f"Growth is not worth it for speed, train in full for fewer steps: {reason}"
