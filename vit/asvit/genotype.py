"""The string that describes an As-ViT network: parsed, printed and checked.

    8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180
    kernel, attention splits, MLP expansion, depth of four stages | heads of the last stage, width of the first

Depths default to 1 and the width to 32 (the seed networks of the search).
Source: As-ViT, section 3; the format is that of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoprog_diffusion.growth.errors import GrowthError


STAGES = 4
SEED_WIDTH = 32
MAX_WIDTH = 1024  # of any stage
STRIDE = 4  # of the first projection; every later stage halves the side of the token grid
EXAMPLE = "8,2,3|4,1,2|4,1,4|4,1,6|32"

# Values of the published space, by part.
PUBLISHED: dict[str, tuple[int, ...]] = {
    "K1": (4, 5, 6, 7, 8), "S1": (2, 4, 8), "E1": (2, 3, 4, 5, 6),
    "K2": (2, 3, 4), "S2": (1, 2, 4), "E2": (2, 3, 4, 5, 6),
    "K3": (2, 3, 4), "S3": (1, 2), "E3": (2, 3, 4, 5, 6),
    "K4": (2, 3, 4), "S4": (1,), "E4": (2, 3, 4, 5, 6),
    "H": (16, 32, 64),
}  # fmt: skip

# The published family; depths and widths of Small and Base are the ones that give the published sizes.
ZOO = {
    "seed": "8,2,3|4,1,2|4,1,4|4,1,6|32",
    "small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "large": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
}

_MEANINGS = {"K": "kernel", "S": "attention splits", "E": "MLP expansion", "H": "heads", "L": "depth", "C": "width"}


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

    kernels: tuple[int, ...]
    splits: tuple[int, ...]
    expansions: tuple[int, ...]
    heads: int
    depths: tuple[int, ...] = (1,) * STAGES
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
    def parse(cls, text: str, allowed: Mapping[str, Sequence[int]] = PUBLISHED) -> Genotype:
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
            stages.append([*_numbers(text, piece, names, 3, allowed), 1][:4])
        head = [*_numbers(text, pieces[-1], ["H", "C"], 1, allowed), SEED_WIDTH][:2]
        kernels, splits, expansions, depths = (tuple(column) for column in zip(*stages))
        return cls(kernels, splits, expansions, head[0], depths, head[1])

    def __str__(self) -> str:
        short = self.depths == (1,) * STAGES and self.width == SEED_WIDTH
        columns = [self.kernels, self.splits, self.expansions, *([] if short else [self.depths])]
        stages = [",".join(map(str, row)) for row in zip(*columns)]
        return "|".join([*stages, str(self.heads) if short else f"{self.heads},{self.width}"])

    @property
    def choices(self) -> dict[str, int]:
        """What the search chooses, by part: K1, S1, E1, ..., E4, H."""
        rows = zip(self.kernels, self.splits, self.expansions)
        values = {f"{letter}{i}": v for i, row in enumerate(rows, 1) for letter, v in zip("KSE", row)}
        return {**values, "H": self.heads}

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        return tuple(min(MAX_WIDTH, self.width * 2**stage) for stage in range(STAGES))

    @property
    def stage_heads(self) -> tuple[int, ...]:
        """Attention heads of the four stages."""
        return tuple(self.heads // 2 ** (STAGES - 1 - stage) for stage in range(STAGES))

    def grids(self, image_size: int) -> tuple[int, ...]:
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


def _numbers(text: str, piece: str, names: list[str], needed: int, allowed: Mapping[str, Sequence[int]]) -> list[int]:
    """The integers of one part between bars, each checked against what its name may hold."""
    words = piece.split(",")
    if not needed <= len(words) <= len(names):
        form = ",".join(names[:needed]) + "".join(f"[,{name}]" for name in names[needed:])
        raise GenotypeError(f"genotype {text!r}: part {piece!r} should be {form}, as in {EXAMPLE!r}.")
    values = []
    for name, word in zip(names, words):
        digits = word.strip()
        if not (digits.isascii() and digits.isdecimal()):
            raise GenotypeError(
                f"genotype {text!r}: {name} ({_MEANINGS[name[0]]}) is {word!r}, not a whole number; it may be "
                f"{_listed(allowed.get(name))}."
            )
        value = int(digits)
        _check_positive(name, value)
        if name in allowed and value not in allowed[name]:
            raise GenotypeError(
                f"genotype {text!r}: {name} ({_MEANINGS[name[0]]}) is {value}; it may be {_listed(allowed[name])}."
            )
        values.append(value)
    return values


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GenotypeError(f"{name} ({_MEANINGS[name[0]]}) is {value!r}; it must be a whole number of at least 1.")


def _listed(values: Sequence[int] | None) -> str:
    if values is None:
        return "any whole number of at least 1"
    return ", ".join(map(str, values[:-1])) + " or " * (len(values) > 1) + str(values[-1])
