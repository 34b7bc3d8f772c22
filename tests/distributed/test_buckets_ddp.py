"""Two gloo ranks train buckets: every image once an epoch, in batches of one size, from caches that both filled."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("bucket_script.py", tmp_path_factory.mktemp("buckets"))


def test_ranks_fill_the_caches_together_and_read_the_same(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first["drawn"] == second["drawn"]
    assert first["files"] == second["files"]
    assert not [name for name in first["files"] if name.endswith(".tmp")]
    # Every item once, and the first of every bucket once more for its shape.
    buckets = len(first["drawn"])
    assert first["encoded"] + second["encoded"] == first["items"] + buckets
    assert min(first["encoded"], second["encoded"]) > 0


@pytest.mark.parametrize("incomplete", ["drop", "fill"])
def test_ranks_see_every_image_once_an_epoch(ranks: list[dict[str, Any]], incomplete: str) -> None:
    first, second = (rank[incomplete] for rank in ranks)
    places = first["places"]
    for epoch in range(3):
        one, other = first["epochs"][epoch], second["epochs"][epoch]
        assert len(one) == len(other)
        for batch in one + other:
            assert len(batch) == 2
            assert len({places[item] for item in batch}) == 1
        counts = Counter(sum(one + other, []))
        missing = len(places) - len(counts)
        twice = sum(counts.values()) - len(counts)
        assert (missing, twice) == (first["left"]["dropped"], first["left"]["repeated"])
        assert max(counts.values()) == 1 or incomplete == "fill"
    assert first["epochs"][0] != first["epochs"][1]
    for rank in (first, second):
        assert rank["rest"] == rank["epochs"][1][2:]
