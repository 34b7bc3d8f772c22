"""FLOPs by kind, bytes moved and calls of some operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Work:
    """What some operations cost.

    Attributes:
        products: FLOPs of matrix products.
        convolutions: FLOPs of convolutions.
        attention: Numbers in a head -> FLOPs of fused attention with such heads. A CPU's speed depends on them.
        moved: Bytes that all other operations read and write.
        calls: Number of operations.
    """

    products: int = 0
    convolutions: int = 0
    attention: dict[int, int] = field(default_factory=dict)
    moved: int = 0
    calls: int = 0

    @property
    def flops(self) -> int:
        """All FLOPs, as PyTorch's counter counts them."""
        return self.products + self.convolutions + sum(self.attention.values())

    def attend(self, head: int, flops: int) -> None:
        """Count FLOPs of attention.

        Args:
            head: Numbers in a head.
            flops: Of the operation.
        """
        self.attention[head] = self.attention.get(head, 0) + flops

    def copy(self) -> Work:
        """The same, apart from what is counted later."""
        return self + Work()

    def of_batch(self, images: int) -> Work:
        """The same operations on more images: as many calls.

        Args:
            images: How many times as many.
        """
        return Work(
            products=images * self.products,
            convolutions=images * self.convolutions,
            attention={head: images * flops for head, flops in self.attention.items()},
            moved=images * self.moved,
            calls=self.calls,
        )

    def __add__(self, other: Work) -> Work:
        return self._with(other, 1)

    def __sub__(self, other: Work) -> Work:
        return self._with(other, -1)

    def _with(self, other: Work, sign: int) -> Work:
        return Work(
            products=self.products + sign * other.products,
            convolutions=self.convolutions + sign * other.convolutions,
            attention=_summed(self.attention, other.attention, sign),
            moved=self.moved + sign * other.moved,
            calls=self.calls + sign * other.calls,
        )


def _summed(mine: Mapping[int, int], other: Mapping[int, int], sign: int) -> dict[int, int]:
    """Sums by head; a head without FLOPs is left out."""
    sums = {head: mine.get(head, 0) + sign * other.get(head, 0) for head in sorted({*mine, *other})}
    return {head: flops for head, flops in sums.items() if flops}
