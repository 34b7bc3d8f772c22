"""Methods of the time-to-quality benchmark: full fine-tuning, what people use instead of it, and ways to grow."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cases import Subject
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, Stage, fixed_plan
from autoprog_diffusion.growth.adapter import find_adapter
from autoprog_diffusion.growth.presets import freezing_from


FULL: dict[str, Any] = {"num_stages": 1, "min_trainable": 1.0, "stage_embedding": False}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_RANK = 16
LISA_BLOCKS, LISA_PERIOD = 2, 5


def _everything(subject: Subject, seed: int) -> None:
    del subject, seed


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning, in the same loop as all others.

    Attributes:
        name: For file names.
        title: For tables.
        growth: Fields of `GrowthConfig`; the default trains everything from the first step to the last.
        share: Length of the schedule, as a fraction of the case's steps; the rate decays to 0 within it.
        rates: Learning rates that seed 0 of every case chooses from.
        adapt: Chooses what may ever train, in place, before growth sees the model.
        plan: (blocks, steps, seed) -> stages, instead of the configuration's.
        batch_scales: Batch of every stage, as a factor of the case's.
        optimizer: As `--optimizer` of the recipes; `fused` is torch's AdamW in one kernel.
        trained_dtype: As `--trained_dtype`: bfloat16 rounds stochastically.
        autocast: Whether training runs under bfloat16 autocast; evaluations never do.
        decays: Whether the rate decays to 0 by a cosine; else it is constant after the warm-up.
        exponent: Weights of step s count as s^exponent in an average that is evaluated and saved; None for no average.
        freeze_at_average: Whether a block that freezes takes its average.
        main: Whether it runs before the ablations, and in `--quick`.
        others: Whether the cases after the first include it.
        pictures: Whether pictures are drawn and judged.
    """

    name: str
    title: str
    growth: Mapping[str, Any] = field(default_factory=lambda: FULL)
    share: float = 1.0
    rates: tuple[float, ...] = (5e-4,)
    adapt: Callable[[Subject, int], None] = _everything
    plan: Callable[[int, int, int], GrowthPlan] | None = None
    batch_scales: tuple[float, ...] | None = None
    optimizer: str = "fused"
    trained_dtype: str = "float32"
    autocast: bool = False
    decays: bool = True
    exponent: float | None = None
    freeze_at_average: bool = False
    main: bool = False
    others: bool = False
    pictures: bool = False

    def config(self, multiple: int) -> GrowthConfig:
        """The configuration for a model whose images' sides are multiples of `multiple`."""
        base = {"order": "interleaved", "direction": "unfreeze", "stage_embedding": False}
        return GrowthConfig(**{**base, **self.growth, "resolution_multiple": multiple})


def keep_trainable(subject: Subject, wanted: Callable[[str], bool]) -> None:
    """Freeze all parameters but those whose names are wanted, and the rows of new classes."""
    for name, parameter in subject.denoiser.named_parameters():
        parameter.requires_grad_(wanted(name) or any(word in name for word in subject.always))


def lora(subject: Subject, seed: int) -> None:
    """Rank-16 adapters on all attention projections (arXiv 2106.09685)."""
    model = subject.denoiser
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=ATTENTION), model)
    keep_trainable(subject, lambda name: "lora_" in name)


def last_quarter(subject: Subject, seed: int) -> None:
    """Only the last quarter of the blocks and the head, to the end."""
    del seed
    layout = find_adapter(subject.denoiser).layout(subject.denoiser)
    blocks = layout.blocks[-round(len(layout.blocks) / 4) :]
    names = {name for unit in (*blocks, layout.outputs) for name in unit.parameters}
    keep_trainable(subject, names.__contains__)


def bitfit(subject: Subject, seed: int) -> None:
    """Only biases (arXiv 2106.10199)."""
    del seed
    keep_trainable(subject, lambda name: name.endswith("bias"))


def difffit(subject: Subject, seed: int) -> None:
    """Biases, norms, and a learned factor on what every block puts out (after DiffFit, arXiv 2304.06648)."""
    del seed
    model = subject.denoiser
    layout = find_adapter(model).layout(model)
    for unit in layout.blocks:
        for name in unit.modules:
            module = model.get_submodule(name)
            module.register_parameter("difffit_gamma", nn.Parameter(torch.ones(())))
            module.register_forward_hook(_scaled)
    norms = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))
        for leaf, _ in module.named_parameters(recurse=False)
    }
    keep_trainable(subject, lambda name: name.endswith(("bias", "difffit_gamma")) or name in norms)


def _scaled(module: nn.Module, args: Any, output: Any) -> Any:
    gamma: Any = module.difffit_gamma
    if isinstance(output, Tensor):
        return gamma * output
    return tuple(gamma * part if isinstance(part, Tensor) else part for part in output)


def stratified(subject: Subject, seed: int) -> None:
    """Timesteps of a batch spread evenly (`--timestep_sampling stratified` of the recipes)."""
    del seed
    task: Any = subject.task
    task.noise = replace(task.noise, timestep_sampling="stratified")


def lisa(count: int, steps: int, seed: int) -> GrowthPlan:
    """Every 5 steps a few blocks drawn anew (LISA, arXiv 2403.17919)."""
    stages = []
    for start in range(0, steps, LISA_PERIOD):
        drawn = random.Random(f"lisa {seed} {start}").sample(range(count), min(LISA_BLOCKS, count))
        stages.append(Stage(start, tuple(sorted(drawn))))
    return GrowthPlan(count, steps, tuple(stages))


def random_plan(count: int, steps: int, seed: int) -> GrowthPlan:
    """Four even stages that train a quarter, half, three quarters and all of the blocks, which ones at random."""
    order = random.Random(f"plan {seed}").sample(range(count), count)
    stages = [Stage(steps * k // 4, tuple(sorted(order[: -(-count * (k + 1) // 4)]))) for k in range(4)]
    return GrowthPlan(count, steps, tuple(stages))


def freeze_plan(count: int, steps: int, seed: int) -> GrowthPlan:
    """Even stages, eight or as many as there are blocks, that freeze as many blocks each, from the input on."""
    del seed
    stages = min(8, count)
    config = GrowthConfig(num_stages=stages, min_trainable=1 / stages, order="suffix", direction="freeze")
    return fixed_plan(config, count, steps)


def late_plan(count: int, steps: int, seed: int) -> GrowthPlan:
    """Eight stages, or as many as there are blocks, with the first freeze at 40 % of the run."""
    del seed
    return fixed_plan(GrowthConfig(**freezing_from(0.4, min(8, count))), count, steps)


def later_plan(count: int, steps: int, seed: int) -> GrowthPlan:
    """The same with the first freeze at 60 %."""
    del seed
    return fixed_plan(GrowthConfig(**freezing_from(0.6, min(8, count))), count, steps)


def same_blocks(count: int, steps: int, seed: int) -> GrowthPlan:
    """Four even stages that all train everything, for a batch that grows."""
    del seed
    return GrowthPlan(count, steps, tuple(Stage(steps * k // 4, tuple(range(count))) for k in range(4)))


def _stages(**fields: Any) -> dict[str, Any]:
    return {"num_stages": 4, "min_trainable": 0.25, **fields}


def _half(**fields: Any) -> dict[str, Any]:
    return {"num_stages": 2, "min_trainable": 1.0, "boundaries": (0.5,), **fields}


def _windows(count: int, sweeps: int = 1, **fields: Any) -> dict[str, Any]:
    """Windows of one part in `count` of the blocks, from the input to the output."""
    return {"num_stages": count * sweeps, "sweeps": sweeps, "order": "suffix", "direction": "window", **fields}


def _stored(dtype: str) -> dict[str, Any]:
    """Freezing in eight stages over frozen blocks that are held in a format."""
    return {"growth": {**FREEZE, "frozen_dtype": dtype}, "plan": freeze_plan}


BATCHES = (0.25, 0.5, 0.75, 1.0)
SMALL = (0.5,) * 4
BOTH = (5e-4, 1e-3)
WIDE = (5e-4, 1e-3, 2e-3)  # for windows, whose blocks see a part of the steps
LOW = (1.25e-4, 2.5e-4)  # for small batches
FEW = (2e-3, 4e-3, 8e-3, 1.6e-2)  # rates for methods that train few parameters
QUARTERS = _stages(order="suffix")
EARLY = {**QUARTERS, "boundaries": (0.1, 0.2, 0.3)}
HALF = _half(order="suffix", min_trainable=0.5)
FREEZE = _stages(order="suffix", direction="freeze")
EIGHT: dict[str, Any] = {"growth": FREEZE, "plan": freeze_plan}
AVERAGED: dict[str, Any] = {"decays": False, "exponent": 3.0}
AVERAGE: dict[str, Any] = {**AVERAGED, "rates": (2.5e-4, 5e-4), "others": True}
LATE: dict[str, Any] = {"growth": FREEZE, "plan": late_plan, **AVERAGE}
# Half the batch, for 1.75 times the steps.
HALVED: dict[str, Any] = {"share": 1.75, "batch_scales": (0.5,) * 8}
QUARTERED: dict[str, Any] = {"share": 3.0, "batch_scales": (0.25,) * 8}
ROUNDED: dict[str, Any] = {"trained_dtype": "bfloat16", "autocast": True}
PAPER = _stages(order="interleaved")
SEARCH = _stages(search="zero_shot")
MAIN: dict[str, Any] = {"main": True, "others": True}
DRAWN: dict[str, Any] = {**MAIN, "pictures": True}
METHODS = {
    method.name: method
    for method in (
        Method("full", "full fine-tuning", rates=(2.5e-4, 5e-4, 1e-3), **DRAWN),
        Method("full_short", "full, half the steps", share=0.5, rates=BOTH, **DRAWN),
        Method("full_quarter", "full, a quarter of the steps", share=0.25, rates=BOTH, **MAIN),
        Method("full_long", "full, half the batch, twice the steps", QUARTERS, 2.0, (2.5e-4, 5e-4), plan=same_blocks,
               batch_scales=SMALL, **MAIN),
        Method("full_stratified", "full, stratified timesteps", adapt=stratified, **DRAWN),
        Method("lora", f"LoRA, rank {LORA_RANK}", adapt=lora, rates=FEW, **DRAWN),
        # The rate of plain LoRA, tuned on seed 0 of both cases.
        Method("lora_freeze", "LoRA, freezing, 4 stages", FREEZE, rates=(8e-3,), adapt=lora),
        Method("lora_unfreeze", "LoRA, unfreezing, 4 stages", QUARTERS, rates=(8e-3,), adapt=lora),
        Method("interleaved", "unfreezing, interleaved (the paper's)", PAPER, rates=BOTH, **MAIN),
        Method("unfreeze", "unfreezing, 4 stages", QUARTERS, rates=BOTH, **DRAWN),
        Method("early", "unfreezing, opened early", EARLY, **MAIN),
        Method("freeze", "freezing, 4 stages", FREEZE, **DRAWN),
        Method("freeze_8", "freezing, 8 stages", **EIGHT, **DRAWN),
        Method("freeze_8_long", "freezing, 8 stages, 1.4 times the steps", share=1.4, **EIGHT, **MAIN),
        Method("freeze_8_stratified", "freezing, 8 stages, stratified", adapt=stratified, **EIGHT, **MAIN),
        Method("freeze_8_small", "freezing, 8 stages, half the batch, twice the steps", share=2.0,
               batch_scales=(0.5,) * 8, **EIGHT, others=True),
        Method("early_stratified", "unfreezing, opened early, stratified", EARLY, adapt=stratified, others=True),
        Method("random", "random schedule", _stages(), plan=random_plan, others=True),
        Method("suffix", "last quarter only", adapt=last_quarter, others=True),
        Method("gain_per_cost", "search, gain per cost", {**SEARCH, "search_objective": "gain_per_cost"}, others=True),
        Method("rank_vote", "search, rank vote", {**SEARCH, "search_objective": "rank_vote"}),
        Method("freeze_interleaved", "freezing, 4 stages, interleaved", {**FREEZE, "order": "interleaved"}),
        Method("freeze_prefix", "freezing, 4 stages, the front stays", {**FREEZE, "order": "prefix"}),
        Method("combined", "suffix half at half batch, then all", HALF, batch_scales=(0.5, 1.0)),
        Method("full_small", "full, half the batch", QUARTERS, plan=same_blocks, batch_scales=SMALL),
        Method("small_stratified", "full, half the batch, stratified", QUARTERS, plan=same_blocks, batch_scales=SMALL,
               adapt=stratified),
        Method("batch", "batch growth alone", QUARTERS, plan=same_blocks, batch_scales=BATCHES),
        Method("batch_suffix", "suffix and batch growth, 4 stages", QUARTERS, batch_scales=BATCHES),
        Method("resolution", "resolution growth alone, 0.5 to 1", _half(resolutions=(0.5, 1.0))),
        Method("resolution_75", "resolution growth alone, 0.75 to 1", _half(resolutions=(0.75, 1.0))),
        Method("two_stages", "suffix half, then all", HALF),
        Method("rewarm", "unfreezing, re-warm-up", {**QUARTERS, "rewarm_steps": 4}),
        Method("interleaved_sid", "unfreezing, interleaved, SID", {**PAPER, "stage_embedding": True}),
        Method("interleaved_sid_dropout", "unfreezing, interleaved, the paper's SID", {
            **PAPER, "stage_embedding": True, "stage_embedding_init": "normal", "stage_dropout": 0.1}),
        Method("lisa", f"LISA-style, {LISA_BLOCKS} blocks redrawn every {LISA_PERIOD} steps", {
            "embedders_always": True, "window_state": "park"}, plan=lisa),
        Method("window_2", "windows, halves", _windows(2), rates=WIDE, others=True),
        Method("window_4", "windows, quarters", _windows(4), rates=WIDE, others=True),
        Method("window_8", "windows, eighths", _windows(8), rates=WIDE, others=True),
        # The best rate of the shorter runs.
        Method("window_4_long", "windows, quarters, twice the steps", _windows(4), 2.0, rates=(1e-3,)),
        Method("window_8_long", "windows, eighths, twice the steps", _windows(8), 2.0, rates=(1e-3,)),
        Method("window_2_twice", "windows, halves, twice", _windows(2, 2), rates=WIDE),
        Method("window_4_twice", "windows, quarters, twice", _windows(4, 2), rates=WIDE),
        Method("window_4_parked", "windows, quarters, twice, moments parked", _windows(4, 2, window_state="park"),
               rates=WIDE),
        Method("window_4_often", "windows, quarters, four times, moments parked",
               _windows(4, 4, window_state="park"), rates=WIDE),
        Method("window_4_rewarm", "windows, quarters, re-warm-up", _windows(4, rewarm_steps=4), rates=WIDE),
        Method("window_4_overlap", "windows, quarters, at distances of an eighth",
               _windows(7, window_share=0.25), rates=WIDE),
        Method("window_4_output", "windows, quarters, from the output on", _windows(4, order="prefix"), rates=WIDE),
        Method("window_4_interleaved", "windows, every fourth block", _windows(4, order="interleaved"), rates=WIDE),
        Method("window_4_embedders", "windows, quarters, embedders always", _windows(4, embedders_always=True),
               rates=WIDE),
        Method("window_2_float8", "windows, halves, frozen float8", _windows(2, frozen_dtype="float8"), rates=WIDE),
        Method("freeze_8_float8", "freezing, 8 stages, frozen float8", **_stored("float8")),
        Method("freeze_8_int8", "freezing, 8 stages, frozen int8", **_stored("int8")),
        Method("freeze_8_nf4", "freezing, 8 stages, frozen nf4", **_stored("nf4")),
        Method("freeze_8_autocast", "freezing, 8 stages, bf16 autocast", autocast=True, **EIGHT),
        Method("freeze_8_bf16", "freezing, 8 stages, bf16 autocast, frozen bf16", autocast=True,
               **_stored("bfloat16")),
        Method("full_autocast", "full, bf16 autocast", autocast=True),
        Method("full_8bit", "full, bf16 autocast, 8-bit Adam", optimizer="adamw8bit", autocast=True),
        Method("full_8bit_bf16", "full, bf16 weights rounded stochastically, 8-bit Adam", rates=BOTH,
               optimizer="adamw8bit", **ROUNDED),
        Method("full_4bit_bf16", "full, bf16 weights rounded stochastically, 4-bit Adam", rates=BOTH,
               optimizer="adamw4bit", **ROUNDED),
        Method("lora_average", "LoRA, constant rate, average", adapt=lora, decays=False, exponent=3.0,
               rates=(4e-3, 8e-3)),
        Method("lora_late_average", "LoRA, freezing from 40 %, average", FREEZE, plan=late_plan, adapt=lora,
               decays=False, exponent=3.0, rates=(4e-3, 8e-3)),
        Method("full_double", "full, twice the steps", share=2.0, rates=(2.5e-4, 5e-4)),
        Method("full_average", "full, constant rate, average", main=True, pictures=True, **AVERAGE),
        Method("full_average_stratified", "full, average, stratified", adapt=stratified, **AVERAGE),
        Method("full_average_small", "full, average, half the batch, 1.75 times the steps", QUARTERS,
               plan=same_blocks, **HALVED, **AVERAGE),
        Method("freeze_8_average", "freezing, 8 stages, average", **EIGHT, **AVERAGE),
        Method("late_average", "freezing from 40 %, average", main=True, pictures=True, **LATE),
        Method("later_average", "freezing from 60 %, average", **{**LATE, "plan": later_plan}),
        Method("late_average_frozen", "freezing from 40 % at the average, average", freeze_at_average=True, **LATE),
        Method("late_average_small", "freezing from 40 %, average, half the batch, 1.75 times the steps", main=True,
               **HALVED, **{**LATE, "rates": (*LOW, 5e-4)}),
        Method("late_average_quarter", "freezing from 40 %, average, a quarter of the batch, 3 times the steps",
               **QUARTERED, **{**LATE, "rates": LOW}),
        Method("late_average_small_stratified", "all of these, stratified", adapt=stratified, **HALVED, **LATE),
        Method("bitfit", "BitFit", adapt=bitfit, rates=FEW[1:]),
        Method("difffit", "DiffFit-style", adapt=difffit, rates=FEW[1:]),
    )
}  # fmt: skip
# Stages, levels, resolutions, vote and stage embedding of the released code, for larger and longer runs.
AUTOPROG_ZERO = Method("autoprog_zero", "AutoProg-Zero as published, cosine", GrowthConfig.autoprog_zero().to_dict())
