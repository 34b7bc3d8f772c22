"""Quality of drawn pictures: KID with a pretrained network, and whether a picture shows what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from cases import Subject
from picture_features import features, pixels, rounded
from torch import Tensor


FIRST_SEED = 1000  # of the first picture drawn
REFERENCES = 400  # real pictures that KID compares with


def kid(first: Tensor, second: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased, of two sets of (N, D) features; the cubic kernel of KID.

    Source: Binkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, section 4.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())


class Judge:
    """Real pictures of a case and what is known of them, computed once.

    Args:
        subject: Any subject of the case.
    """

    def __init__(self, subject: Subject) -> None:
        self._pictures = pixels(subject.real())
        count = len(self._pictures)
        # Every held-out picture is near the front; spread over all, so that the reference is the domain itself.
        rows = torch.arange(min(REFERENCES, count)) * count // min(REFERENCES, count)
        self._real = features(self._pictures[rows]), features(rounded(self._pictures[rows]))
        self._held, self._labels = subject.held_count, subject.labels
        self.count = len(rows)

    def score(self, subject: Subject, rounds: int = 1) -> dict[str, float]:
        """Draw with the subject as it is, and measure.

        Args:
            subject: Of the case.
            rounds: How often every prompt is drawn, with other seeds every time.

        Returns:
            `kid` and `kid_rounded`, times 1000; `agreement` in [0, 1]; `drawn` and `references`, numbers of pictures.
        """
        pictures = [subject.draw(FIRST_SEED * (1 + number)) for number in range(rounds)]
        drawn = pixels([picture for each in pictures for picture in each])
        wanted = [row for _ in pictures for row in subject.wanted]
        raw, smooth = features(drawn), features(rounded(drawn))
        agreement = self._classes(smooth, wanted) if self._labels else self._retrieved(drawn, wanted)
        return {
            "kid": 1000 * kid(raw, self._real[0]),
            "kid_rounded": 1000 * kid(smooth, self._real[1]),
            "agreement": agreement,
            "drawn": len(drawn),
            "references": self.count,
        }

    def _retrieved(self, drawn: Tensor, wanted: Sequence[int]) -> float:
        """Share whose own real picture is among the nearest five, by squared distance at 16x16 pixels."""
        small, real = (F.avg_pool2d(images, 4).flatten(1) for images in (drawn, self._pictures))
        distances = torch.cdist(small, real)
        own = distances.gather(1, torch.tensor(wanted)[:, None])
        return float(((distances < own).sum(1) < 5).float().mean())

    def _classes(self, drawn: Tensor, wanted: Sequence[int]) -> float:
        """Share whose nearest prototype, mean features of a class's held-out pictures, is that of its class."""
        held = features(rounded(self._pictures[: self._held]))
        labels = torch.tensor(self._labels[: self._held])
        classes = sorted(set(labels.tolist()))
        prototypes = torch.stack([held[labels == label].mean(0) for label in classes])
        nearest = torch.cdist(drawn, prototypes).argmin(1)
        return float((torch.tensor(classes)[nearest] == torch.tensor(wanted)).float().mean())
