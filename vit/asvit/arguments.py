"""Command-line arguments of `vit/asvit.py`: its three sub-commands, and their presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from autoprog_diffusion import command_line
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.arguments import OutputArguments, check_numbers, flat_flags, take_flag
from autoprog_diffusion.training.flag_checks import explicit_wins

from ..retokenize import PUBLISHED_BOUNDARIES
from ..training.arguments import DataArguments, SharedArguments, check_shared, output_arguments


@dataclass(frozen=True)
class ScoreArguments:
    """Training-free scores."""

    img_size: int = 224
    """Side of the images in pixels, a multiple of 32."""
    repeats: int = 5
    """Random initialisations a network is scored at; 5 as published."""
    images: Literal["data", "noise"] = "data"
    """What the NTK is measured on: images of the training data, or normal noise, which needs none."""
    ntk_batch: int = 16
    """Images in the NTK's batch; 16 as published."""
    seed: int = 0
    """Seed of everything random."""


@flat_flags
@dataclass(frozen=True)
class SearchArguments:
    """Search a topology without training."""

    method: Literal["evolution", "reinforce"] = "evolution"
    """Regularised evolution with rank sums, or REINFORCE as published."""
    steps: int = 500
    """Networks drawn; 500 as published."""
    population: int = 50
    """Of evolution: networks alive."""
    tournament: int = 10
    """Of evolution: networks drawn for every parent."""
    space: tuple[str, ...] = ()
    """Narrow the space, for example K1=4,5 H=32; parts are K1-K4, S1-S3, E1-E4, H."""
    output_dir: str = "asvit-search"
    """Folder of search.json, search.png and evaluations.json."""
    resume: bool = False
    """Continue the search that the folder holds."""
    score: ScoreArguments = ScoreArguments()
    data: DataArguments = DataArguments()


@flat_flags
@dataclass(frozen=True)
class ScaleArguments:
    """Grow a topology into a family of networks, without training."""

    genotype: str = "seed"
    """A genotype, seed (the published topology), or the folder of a search."""
    budget_params: float | None = None
    """Parameters that no network may exceed, for example 30e6."""
    budget_flops: float | None = None
    """Multiply-adds of one image that no network may exceed, for example 5e9."""
    num_classes: int = 1000
    """Outputs of the head, which count as parameters."""
    shrink: int = 4
    """Measure scores at 1/shrink of the width: 4 as published, 1 at the full width."""
    width_multiple: int = 1
    """What the width must be a multiple of, for the hardware; 8 suits most."""
    head_dim_multiple: int = 1
    """What the channels of an attention head must be a multiple of."""
    min_head_dim: int = 1
    """Smallest number of channels of an attention head."""
    output_dir: str = "asvit-family"
    """Folder of family.json, family.png and evaluations.json."""
    resume: bool = False
    """Continue the scaling that the folder holds."""
    score: ScoreArguments = ScoreArguments()
    data: DataArguments = DataArguments()


@flat_flags
@dataclass(frozen=True)
class TrainArguments(SharedArguments):
    """Train a network with progressive re-tokenization."""

    genotype: str = "small"
    """A genotype, seed, small, base or large (the published networks), or the folder of a search or a scaling."""
    member: int = -1
    """Of a family: which network, counted from 0; -1 is the largest."""
    img_size: int = 224
    """Side of the images in pixels, a multiple of 32."""
    drop_path: float = 0.1
    """Rate of stochastic depth of the last block."""
    retokenization: Literal["on", "off"] = "on"
    """off is ordinary training in the same loop."""
    strides: tuple[int, ...] = (16, 8, 4)
    """Pixels from one token to the next in every stage; the last one is the network's own, 4."""
    boundaries: tuple[float, ...] = PUBLISHED_BOUNDARIES
    """First step of every stage but the first, as fractions of the run."""
    output: OutputArguments = output_arguments("asvit-trained")


Command = (
    Annotated[SearchArguments, tyro.conf.subcommand("search", prefix_name=False)]
    | Annotated[ScaleArguments, tyro.conf.subcommand("scale", prefix_name=False)]
    | Annotated[TrainArguments, tyro.conf.subcommand("train", prefix_name=False)]
)

_SCORES = "--img_size 64 --repeats 2"
PRESETS = {
    "cpu": {
        "search": f"--steps 100 --population 25 --tournament 6 {_SCORES}",
        "scale": f"--budget_params 8e6 --num_classes 24 {_SCORES}",
        "train": "--genotype 4,2,3,1|2,1,2,1|2,1,4,1|2,1,4,1|16,24 --img_size 64 --drop_path 0.05 --batch_size 64 "
        "--max_train_steps 450 --lr 2e-3 --warmup_steps 30 --clip_grad 1 --model_ema_decay 0.98 --crop pad "
        "--aa rand-m5-mstd0.5-inc1 --reprob 0 --mixup 0 --cutmix 0 --validation_steps 90 --checkpointing_steps 150",
    }
}


def parse(argv: Sequence[str], description: str | None = None) -> SearchArguments | ScaleArguments | TrainArguments:
    """The arguments of a command line: the preset's flags first, so that any flag after them wins.

    Raises:
        ConfigError: There is no such preset, or a value is not allowed.
    """
    preset, words = take_flag(argv, "preset")
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"--preset {preset} is not known: use one of {sorted(PRESETS)}, or flags without one.")
        words = [words[0], *PRESETS[preset].get(words[0], "").split(), *words[1:]] if words else words
    args: Any = command_line.parse(Command, words, description=description)  # type: ignore[arg-type]
    if isinstance(args, TrainArguments):
        args = explicit_wins(args, argv)
        check_shared(args)
    else:
        score = vars(args.score)
        check_numbers(
            score,
            names=["repeats"],
            allowed=lambda number: number >= 1,
            words="a larger number",
        )
        check_numbers(
            score,
            names=["ntk_batch"],
            allowed=lambda number: number >= 2,
            words="a larger number",
        )
    return args


def parse_space(parts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`K1=4,5` and its like as the values of every part.

    Raises:
        ConfigError: A word has another form.

    Example:
        >>> parse_space(["K1=4,5", "H=32"])
        {'K1': (4, 5), 'H': (32,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        numbers = values.split(",")
        if not equals or not all(number.strip().isdecimal() for number in numbers):
            raise ConfigError(f"--space {part} is not of the form K1=4,5: a part of the space and its values.")
        found[name] = tuple(int(number) for number in numbers)
    return found
