"""Which stages a search may choose from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.plan import select_blocks


@dataclass(frozen=True)
class Candidate:
    """One possible next stage.

    Attributes:
        name: For tables, for example `suffix 2/4 at 0.5`.
        blocks: Sorted indices of the blocks that train.
        resolution: Fraction (float) or pixels (int).
    """

    name: str
    blocks: tuple[int, ...]
    resolution: float | int


def list_candidates(
    config: GrowthConfig,
    num_blocks: int,
    current: Iterable[int],
    resolutions: Sequence[float | int],
    always: Iterable[int] = (),
) -> list[Candidate]:
    """Every level of every order that holds the blocks that train already, at each of the resolutions.

    The user's own sets (`config.search_candidates`) come in place of the levels. Equal sets are listed once, under the
    first name. Every set also holds the blocks that trained from the start, `always`.

    Raises:
        SearchError: No candidate holds the blocks that train already.
    """
    now = set(current)
    found: dict[tuple[tuple[int, ...], float | int], str] = {}
    for name, chosen in _sets(config, num_blocks):
        blocks = tuple(sorted({*chosen, *always}))
        if now <= set(blocks):
            for resolution in resolutions:
                label = name if len(resolutions) == 1 and resolution == 1.0 else f"{name} at {resolution}"
                found.setdefault((blocks, resolution), label)
    if not found:
        raise SearchError(
            f"no candidate holds the blocks {sorted(now)} that train already: growth is monotone, give nested "
            "search_candidates that end in the full model."
        )
    return [Candidate(label, blocks, resolution) for (blocks, resolution), label in found.items()]


def _sets(config: GrowthConfig, num_blocks: int) -> list[tuple[str, tuple[int, ...]]]:
    full = tuple(range(num_blocks))
    if config.search_candidates is not None:
        wrong = [blocks for blocks in config.search_candidates if not set(blocks) <= set(full)]
        if wrong:
            raise SearchError(f"search_candidates {wrong} name blocks outside 0 to {num_blocks - 1}.")
        sets = [(f"candidate {i}", tuple(sorted(b))) for i, b in enumerate(config.search_candidates)]
        return [*sets, ("full", full)]
    levels = max(1, round(1 / config.min_trainable))
    sets = [
        (f"{order} {level}/{levels}", select_blocks(order, num_blocks, level / levels, config.min_trainable))
        for order in config.search_orders
        for level in range(1, levels)
    ]
    return [*sets, ("full", full)]
