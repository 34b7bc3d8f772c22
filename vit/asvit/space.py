"""The architecture space: the values every choice may take, samples and neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from .genotype import PUBLISHED, SEED_DEPTHS, SEED_WIDTH, STAGES, Genotype, GenotypeError, PerStage


@dataclass(frozen=True)
class SearchSpace:
    """Independent choices, in the order of the genotype string. The default is the published space (4,556,250).

    Narrow it by passing fewer values: `SearchSpace({"K1": (4,), "H": (16, 32)})`; what is not named keeps its values.

    Attributes:
        choices: Part (K1, S1, E1, ..., E4, H) -> values allowed.

    Raises:
        GenotypeError: A part does not exist, has no value left, or has one outside the published space.
    """

    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.choices.items():
            if name not in PUBLISHED:
                raise GenotypeError(f"the space has no part {name!r}; its parts are {', '.join(PUBLISHED)}.")
            if not values:
                raise GenotypeError(f"{name}: no value is left; give at least one of {PUBLISHED[name]}.")
            unknown = [value for value in values if value not in PUBLISHED[name]]
            if unknown:
                raise GenotypeError(f"{name}: {unknown} is not in the space; it may be {PUBLISHED[name]}.")
        # Each value once, in a fixed order, so that a seed gives the same samples however the space was written.
        full = {}
        for name, values in PUBLISHED.items():
            wanted = self.choices.get(name, values)
            full[name] = tuple(value for value in values if value in wanted)
        object.__setattr__(self, "choices", full)

    @property
    def size(self) -> int:
        """Number of networks."""
        return math.prod(map(len, self.choices.values()))

    def at(self, image_size: int, width: int = SEED_WIDTH) -> SearchSpace:
        """The part of the space that exists at an image size and a first-stage width.

        At a multiple of 32 pixels the grids have multiples of 8, 4, 2 and 1 tokens a side, which all
        published numbers of windows divide; only the heads are left to fit.

        Args:
            image_size: Side of the images, in pixels.
            width: C, channels of the first stage.

        Raises:
            GenotypeError: Nothing is left, or the strides do not divide the image.
        """
        # Widths double from stage to stage as heads do, and all heads divide the cap of 1024.
        all_heads = self.choices["H"]
        fitting = tuple(heads for heads in all_heads if width % (heads // 8) == 0)
        if not fitting:
            raise GenotypeError(
                f"no network is left at width {width}: H/8 must divide it and H is one of {list(all_heads)}; "
                f"allow fewer heads, or use a width that is a multiple of {min(all_heads) // 8}."
            )
        space = SearchSpace({**self.choices, "H": fitting})
        some = {name: values[0] for name, values in space.choices.items()}
        space.build(some, width=width).check(image_size)
        return space

    def build(self, values: Mapping[str, int], depths: PerStage = SEED_DEPTHS, width: int = SEED_WIDTH) -> Genotype:
        """The genotype with these choices.

        Args:
            values: Part (K1, S1, E1, ..., E4, H) -> its value.
            depths: Blocks of every stage.
            width: C, channels of the first stage.

        Raises:
            GenotypeError: A value is not a whole number of at least 1, or 8 does not divide the heads.
        """
        stages = range(1, STAGES + 1)
        return Genotype(
            kernels=tuple(values[f"K{stage}"] for stage in stages),
            splits=tuple(values[f"S{stage}"] for stage in stages),
            expansions=tuple(values[f"E{stage}"] for stage in stages),
            heads=values["H"],
            depths=depths,
            width=width,
        )

    def sample(self, rng: Random) -> Genotype:
        """A network drawn uniformly, at the depths and the width of the seed networks."""
        drawn = {}
        for name, values in self.choices.items():
            drawn[name] = rng.choice(values)
        return self.build(drawn)

    def mutate(self, genotype: Genotype, rng: Random) -> Genotype:
        """A neighbour: one part, drawn uniformly among those with a choice, takes another value.

        Args:
            genotype: A network of the space; the neighbour has its depths and width.
            rng: Draws the part, then the value.

        Raises:
            GenotypeError: The space has one network only.
        """
        values = genotype.choices
        others = {}
        for name, allowed in self.choices.items():
            left = [value for value in allowed if value != values[name]]
            if left:
                others[name] = left
        if not others:
            raise GenotypeError("the space holds one network only: nothing can be mutated; allow more values.")
        name = rng.choice(list(others))
        values[name] = rng.choice(others[name])
        return self.build(values, genotype.depths, genotype.width)

    def __contains__(self, genotype: object) -> bool:
        """Whether a genotype's choices lie in the space (depths and width are free)."""
        if not isinstance(genotype, Genotype):
            return False
        for name, value in genotype.choices.items():
            if value not in self.choices[name]:
                return False
        return True
