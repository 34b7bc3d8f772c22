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
from itertools import chain
from pathlib import Path

from autoprog_diffusion.growth.errors import GrowthError


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
        for letter, values in zip("KSEL", (self.kernels, self.splits, self.expansions, self.depths)):
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
        stages = []
        for stage, piece in enumerate(pieces[:-1], 1):
            names = [f"{letter}{stage}" for letter in "KSEL"]
            stages.append(_numbers(text, piece, names, allowed))
        heads, width = _numbers(text, pieces[-1], ["H", "C"], allowed)
        kernels, splits, expansions, depths = zip(*stages)
        return cls(kernels, splits, expansions, heads, depths=depths, width=width)

    def __str__(self) -> str:
        columns = [self.kernels, self.splits, self.expansions]
        last = str(self.heads)
        if self.depths != SEED_DEPTHS or self.width != SEED_WIDTH:
            columns.append(self.depths)
            last += f",{self.width}"
        stages = [",".join(map(str, row)) for row in zip(*columns)]
        return "|".join([*stages, last])

    @property
    def choices(self) -> dict[str, int]:
        """What the search chooses, by part: K1, S1, E1, ..., E4, H."""
        stages = zip(self.kernels, self.splits, self.expansions)
        return dict(zip(PUBLISHED, [*chain.from_iterable(stages), self.heads]))

    @property
    def widths(self) -> PerStage:
        """Channels of the four stages."""
        return tuple(min(MAX_WIDTH, self.width * 2**stage) for stage in range(STAGES))

    @property
    def stage_heads(self) -> PerStage:
        """Attention heads of the four stages."""
        return tuple(self.heads // 2 ** (STAGES - 1 - stage) for stage in range(STAGES))

    def grids(self, image_size: int) -> PerStage:
        """Sides of the four token grids at the full stride."""
        return tuple(image_size // (STRIDE * 2**stage) for stage in range(STAGES))

    def check(self, image_size: int) -> None:
        """Raise unless the network exists at this image size.

        Raises:
            GenotypeError: Strides do not divide the image, windows do not divide a grid, or heads a width.
        """
        step = STRIDE * 2 ** (STAGES - 1)
        if image_size < step or image_size % step:
            near = max(step, round(image_size / step) * step)
            raise GenotypeError(
                f"image size {image_size} is not a multiple of {step}, the product of the strides (4, then 2 three "
                f"times); use {near}."
            )
        for stage, (side, splits) in enumerate(zip(self.grids(image_size), self.splits), 1):
            if side % splits:
                fitting = [value for value in PUBLISHED[f"S{stage}"] if side % value == 0]
                raise GenotypeError(
                    f"S{stage}: {splits} windows do not divide the {side} x {side} tokens that stage {stage} has at "
                    f"image size {image_size}; S{stage} may be {_listed(fitting or [1])} there, or use another size."
                )
        for stage, (width, heads) in enumerate(zip(self.widths, self.stage_heads), 1):
            if width % heads:
                raise GenotypeError(
                    f"C: stage {stage} has width {width}, which its {heads} heads do not divide; use a width C that "
                    f"is a multiple of H/8 = {self.heads // 8}, or other heads H."
                )


def _numbers(text: str, piece: str, names: list[str], allowed: Allowed) -> list[int]:
    """The integers of one part between bars; the last of the names may be left out."""
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
    """One integer, checked against what its name may hold."""
    start = f"genotype {text!r}: {name} ({_MEANINGS[name[0]]}) is"
    digits = word.strip()
    if not (digits.isascii() and digits.isdecimal()):
        raise GenotypeError(f"{start} {word!r}, not a whole number; it may be {_listed(allowed.get(name))}.")
    value = int(digits)
    _check_positive(name, value)
    if value not in allowed.get(name, (value,)):
        raise GenotypeError(f"{start} {value}; it may be {_listed(allowed[name])}.")
    return value


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GenotypeError(f"{name} ({_MEANINGS[name[0]]}) is {value!r}; it must be a whole number of at least 1.")


def _listed(values: Sequence[int] | None) -> str:
    if values is None:
        return "any whole number of at least 1"
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
