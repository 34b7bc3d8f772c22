"""The string that describes an As-ViT network: parsed, printed and checked.

    8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180
    kernel, attention splits, MLP expansion, depth of four stages | heads of the last stage, width of the first

Depths default to 1 and the width to 32 (the seed networks of the search).
Source: As-ViT, section 3; the format is that of the released code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.growth.values import is_number


STAGES = 4
SEED_WIDTH = 32
MAX_WIDTH = 1024  # of any stage
SEED_DEPTHS = (1,) * STAGES
STRIDE = 4  # of the first projection; every later stage halves the side of the token grid
EXAMPLE = "8,2,3|4,1,2|4,1,4|4,1,6|32"

PerStage = tuple[int, ...]  # one value for each stage
Allowed = Mapping[str, Sequence[int]]  # part of a genotype -> the values it may take

# PUBLISHED: the values of the published space, by part, in the order of the string. ZOO: the published family; depths
# and widths of Small and Base are the ones that give the published sizes.
_TABLES = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
PUBLISHED: dict[str, list[int]] = _TABLES["space"]
ZOO: dict[str, str] = _TABLES["zoo"]

_MEANINGS = {"K": "kernel", "S": "attention splits", "E": "MLP expansion", "H": "heads", "L": "depth", "C": "width"}
_OPTIONAL = {"L": 1, "C": SEED_WIDTH}


class GenotypeError(GrowthError):
    """A genotype is malformed, lies outside its space, or does not fit the image size."""


@dataclass(frozen=True)
class Genotype:
    """One network of the space.

    Attributes:
        kernels: K1 of the first projection, K2-K4 of the merging layers, in pixels or tokens.
        splits: S1-S4, windows of attention along each side of a stage's token grid.
        expansions: E1-E4, hidden width of the MLPs over the stage's width.
        heads: H, attention heads of the last stage; the others have H/8, H/4 and H/2.
        depths: L1-L4, blocks of every stage.
        width: C, channels of the first stage; the others have 2C, 4C and 8C, at most 1024.
    """

    kernels: PerStage
    splits: PerStage
    expansions: PerStage
    heads: int
    depths: PerStage = SEED_DEPTHS
    width: int = SEED_WIDTH

    def __post_init__(self) -> None:
        per_stage = {"K": self.kernels, "S": self.splits, "E": self.expansions, "L": self.depths}
        for letter, values in per_stage.items():
            if len(values) != STAGES:
                meaning = _MEANINGS[letter]
                raise GenotypeError(f"{meaning}: {list(values)} has {len(values)} entries, one for each of 4 stages.")
            for stage, value in enumerate(values, 1):
                _check_positive(f"{letter}{stage}", value)
        _check_positive("H", self.heads)
        _check_positive("C", self.width)
        if self.heads % 8:
            raise GenotypeError(f"H: {self.heads} heads cannot be divided by 8 for the first stage; use 16, 32 or 64.")

    @classmethod
    def parse(cls, text: str, allowed: Allowed = PUBLISHED) -> Genotype:
        """Read "K1,S1,E1|K2,S2,E2|K3,S3,E3|K4,1,E4|H", with ",L" in any stage and ",C" at the end.

        Args:
            text: The genotype.
            allowed: Values of every part; the published space by default.

        Raises:
            GenotypeError: It is malformed or holds a value that is not allowed.
        """
        pieces = text.strip().split("|")
        if len(pieces) != STAGES + 1:
            raise GenotypeError(
                f"genotype {text!r} has {len(pieces)} parts between bars, 5 are needed (four stages, then the heads), "
                f"as in {EXAMPLE!r}."
            )
        *stage_pieces, last_piece = pieces
        stages = []
        for stage, piece in enumerate(stage_pieces, 1):
            names = [f"{letter}{stage}" for letter in "KSEL"]
            stages.append(_numbers(text, piece, names, allowed))
        heads, width = _numbers(
            text,
            piece=last_piece,
            names=["H", "C"],
            allowed=allowed,
        )
        kernels, splits, expansions, depths = zip(*stages)
        return cls(kernels, splits, expansions, heads, depths=depths, width=width)

    def __str__(self) -> str:
        """The shortest string that `parse` reads as this genotype."""
        scaled = self.depths != SEED_DEPTHS or self.width != SEED_WIDTH
        pieces = []
        for stage in range(STAGES):
            piece = f"{self.kernels[stage]},{self.splits[stage]},{self.expansions[stage]}"
            if scaled:
                piece += f",{self.depths[stage]}"
            pieces.append(piece)
        last = str(self.heads)
        if scaled:
            last += f",{self.width}"
        pieces.append(last)
        return "|".join(pieces)

    @property
    def choices(self) -> dict[str, int]:
        """What the search chooses, by part, in the order of the string: K1, S1, E1, ..., E4, H."""
        values = {}
        for stage in range(STAGES):
            values[f"K{stage + 1}"] = self.kernels[stage]
            values[f"S{stage + 1}"] = self.splits[stage]
            values[f"E{stage + 1}"] = self.expansions[stage]
        values["H"] = self.heads
        return values

    @property
    def widths(self) -> PerStage:
        """Channels of the four stages: doubled from each to the next, up to 1024."""
        doubled = [self.width * 2**stage for stage in range(STAGES)]
        return tuple(min(MAX_WIDTH, width) for width in doubled)

    @property
    def stage_heads(self) -> PerStage:
        """Attention heads of the four stages: doubled from each to the next."""
        first = self.heads // 8
        return tuple(first * 2**stage for stage in range(STAGES))

    def grids(self, image_size: int) -> PerStage:
        """Sides, in tokens, of the four token grids at the full stride.

        Args:
            image_size: Side of the images, in pixels.
        """
        strides = [STRIDE * 2**stage for stage in range(STAGES)]
        return tuple(image_size // stride for stride in strides)

    def check(self, image_size: int) -> None:
        """Raise unless the network exists at this image size.

        Args:
            image_size: Side of the images, in pixels.

        Raises:
            GenotypeError: Strides do not divide the image, windows do not divide a grid, or heads a width.
        """
        step = STRIDE * 2 ** (STAGES - 1)  # of the last stage
        if image_size < step or image_size % step:
            nearest = round(image_size / step) * step
            near = max(step, nearest)
            raise GenotypeError(
                f"image size {image_size} is not a multiple of {step}, the product of the strides (4, then 2 three "
                f"times); use {near}."
            )
        for stage, side in enumerate(self.grids(image_size), 1):
            splits = self.splits[stage - 1]
            if side % splits:
                fitting = [value for value in PUBLISHED[f"S{stage}"] if side % value == 0]
                raise GenotypeError(
                    f"S{stage}: {splits} windows do not divide the {side} x {side} tokens that stage {stage} has at "
                    f"image size {image_size}; S{stage} may be {_listed(fitting or [1])} there, or use another size."
                )
        for stage, width in enumerate(self.widths, 1):
            heads = self.stage_heads[stage - 1]
            if width % heads:
                raise GenotypeError(
                    f"C: stage {stage} has width {width}, which its {heads} heads do not divide; use a width C that "
                    f"is a multiple of H/8 = {self.heads // 8}, or other heads H."
                )


def _numbers(text: str, piece: str, names: list[str], allowed: Allowed) -> list[int]:
    """The integers of one part between bars; the last of the names may be left out.

    Args:
        text: The whole genotype, for messages.
        piece: The part, such as "4,1,2".
        names: Of its integers, such as K2, S2, E2, L2.
        allowed: Name -> the values it may hold.

    Raises:
        GenotypeError: There are too few or too many integers, or one is not allowed.
    """
    words = piece.split(",")
    missing = len(names) - len(words)
    if missing not in (0, 1):
        form = f"{','.join(names[:-1])}[,{names[-1]}]"
        raise GenotypeError(f"genotype {text!r}: part {piece!r} should be {form}, as in {EXAMPLE!r}.")
    values = [_number(text, name, word, allowed) for name, word in zip(names, words)]
    if missing:
        values.append(_OPTIONAL[names[-1][0]])
    return values


def _number(text: str, name: str, word: str, allowed: Allowed) -> int:
    """One integer, checked against what its name may hold.

    Args:
        text: The whole genotype, for messages.
        name: Of the integer, such as K2.
        word: Its digits.
        allowed: Name -> the values it may hold.

    Raises:
        GenotypeError: It is none, below 1, or not allowed.
    """
    start = f"genotype {text!r}: {name} ({_MEANINGS[name[0]]}) is"
    digits = word.strip()
    if not (digits.isascii() and digits.isdecimal()):
        raise GenotypeError(f"{start} {word!r}, not a whole number; it may be {_listed(allowed.get(name))}.")
    value = int(digits)
    _check_positive(name, value)
    if name in allowed and value not in allowed[name]:
        raise GenotypeError(f"{start} {value}; it may be {_listed(allowed[name])}.")
    return value


def _check_positive(name: str, value: int) -> None:
    """Raise `GenotypeError` where the part `name` is no whole number of at least 1."""
    if not is_number(value, int) or value < 1:
        raise GenotypeError(f"{name} ({_MEANINGS[name[0]]}) is {value!r}; it must be a whole number of at least 1.")


def _listed(values: Sequence[int] | None) -> str:
    """Allowed values for a message, such as "16, 32 or 64"; None where any is allowed."""
    if values is None:
        return "any whole number of at least 1"
    *others, last = map(str, values)
    if not others:
        return last
    return f"{', '.join(others)} or {last}"
