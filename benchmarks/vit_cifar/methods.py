"""The ways of pretraining that are compared."""

from __future__ import annotations

from dataclasses import dataclass


STACKING = "--search fixed --operator stacking"
BY_COST = f"{STACKING} --sched cosine_by_cost"


@dataclass(frozen=True)
class Method:
    """One way of pretraining.

    Attributes:
        words: For tables.
        flags: Of `vit/pretrain.py`.
        share: Length of its schedule, as a fraction of the full one.
        strides: Pixels from one token to the next in every stage, which no flag says; None for the model's own.
        rate: Peak of the learning rate.
        ordinary: Name of the ordinary run that it is set against, of the same rate where there is one.
    """

    words: str
    flags: str
    share: float = 1.0
    strides: tuple[int, ...] | None = None
    rate: float = 1e-3
    ordinary: str = "full"


METHODS = {
    "full": Method("ordinary training", "--growth off"),
    "full_short": Method("ordinary training, half the epochs", "--growth off", share=0.5),
    "fixed": Method("fixed schedule", "--search fixed"),
    "stacking": Method("fixed schedule, stacked blocks", STACKING),
    "short_whole": Method("stacked blocks, the last stage shorter", f"{STACKING} --boundaries 0.3 0.6 0.85"),
    "by_cost": Method("stacked blocks, rate decays by cost", BY_COST),
    "by_cost_mogrow": Method("MoGrow, rate decays by cost", "--search fixed --sched cosine_by_cost"),
    "by_cost_higher": Method("stacked blocks, rate decays by cost", BY_COST, rate=2e-3),
    "full_lower": Method("ordinary training", "--growth off", rate=5e-4, ordinary="full_lower"),
    "by_cost_lower": Method("stacked blocks, rate decays by cost", BY_COST, rate=5e-4, ordinary="full_lower"),
    "zero_shot": Method("zero-shot search", "--search zero_shot"),
    "one_shot": Method("one-shot search", "--search one_shot"),
    "retokenization": Method(
        "re-tokenization, whole depth",
        "--search fixed --min_depth 1 --num_stages 2 --boundaries 0.44 --resolutions 32 32",
        strides=(16, 8),  # 4 tokens, then 16
    ),
}
