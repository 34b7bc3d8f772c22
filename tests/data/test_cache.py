from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from autoprog_diffusion.data.cache import ArrayCache, build_cache, module_fingerprint, text_fingerprint


class Squares:
    """Row i is [[i, i^2]]; remembers which rows it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.weight = torch.nn.Parameter(torch.ones(()))

    def __call__(self, rows: Sequence[int]) -> Tensor:
        self.asked.append(list(rows))
        values = torch.tensor(list(rows), dtype=torch.float64)
        return torch.stack([values, values**2], dim=1)[:, None] * self.weight


@pytest.fixture
def build(tmp_path: Path, accelerator: Accelerator) -> Callable[..., ArrayCache]:
    def run(compute: Squares, fingerprint: str = "a", count: int = 10) -> ArrayCache:
        path = tmp_path / "cache" / "rows.npy"
        return build_cache(
            path, count, compute, fingerprint=fingerprint, accelerator=accelerator, batch_size=4, title="rows"
        )

    return run


def check(cache: ArrayCache, count: int = 10) -> None:
    rows = torch.arange(count - 1, -1, -1)
    got = cache[rows]
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.stack([rows, rows**2], dim=1)[:, None].float())


def test_rows_are_computed_in_batches_without_gradient(build: Callable[..., ArrayCache]) -> None:
    compute = Squares()
    cache = build(compute)
    check(cache)
    assert compute.asked[1:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]  # the first call finds the shape
    assert not cache[torch.tensor([1])].requires_grad
    assert cache[torch.tensor([3, 3, 0])].shape == (3, 1, 2)


def test_a_complete_file_is_not_computed_again(build: Callable[..., ArrayCache]) -> None:
    build(Squares())
    again = Squares()
    check(build(again))
    assert again.asked == []


def test_another_fingerprint_computes_anew(build: Callable[..., ArrayCache]) -> None:
    build(Squares())
    again = Squares()
    check(build(again, fingerprint="b", count=6), count=6)
    assert sum(again.asked[1:], []) == list(range(6))
    back = Squares()
    build(back)
    assert back.asked


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "other marker", "no file", "short file"])
def test_what_is_not_surely_complete_is_computed_anew(
    build: Callable[..., ArrayCache], tmp_path: Path, damage: str
) -> None:
    build(Squares())
    path, marker = tmp_path / "cache" / "rows.npy", tmp_path / "cache" / "rows.npy.json"
    assert json.loads(marker.read_text()) == {"fingerprint": "a"}
    if damage == "no file":
        path.unlink()
    elif damage == "short file":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        np.lib.format.open_memmap(path, mode="r+")[5:] = 0
        {"no marker": marker.unlink, "torn marker": lambda: marker.write_text('{"fing'),
         "other marker": lambda: marker.write_text("{}")}[damage]()  # fmt: skip
    again = Squares()
    check(build(again))
    assert again.asked


def test_an_error_half_way_leaves_no_marker(build: Callable[..., ArrayCache], tmp_path: Path) -> None:
    build(Squares())

    class Breaks(Squares):
        def __call__(self, rows: Sequence[int]) -> Tensor:
            if 9 in rows:
                raise OSError("disk")
            return super().__call__(rows)

    with pytest.raises(OSError, match="disk"):
        build(Breaks(), fingerprint="b")
    assert not (tmp_path / "cache" / "rows.npy.json").exists()
    for fingerprint in ("a", "b"):  # neither the old rows nor the new ones are believed
        again = Squares()
        check(build(again, fingerprint=fingerprint))
        assert again.asked


def test_fingerprints_follow_the_weights_and_the_words() -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    assert module_fingerprint(first) != module_fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert module_fingerprint(first) == module_fingerprint(second)
    second.weight.data[1, 1] = torch.nextafter(second.weight.data[1, 1], torch.tensor(9.0))
    assert module_fingerprint(first) != module_fingerprint(second)
    assert text_fingerprint("a", 1) == text_fingerprint("a", 1)
    assert len({text_fingerprint(*parts) for parts in [("a", 1), ("a", "1"), ("a1",), ("a\n1",), (1, "a")]}) == 5


def test_a_cache_in_bfloat16_takes_half_the_space_and_is_not_taken_for_another(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    def run(compute: Squares, dtype: Any) -> ArrayCache:
        return build_cache(
            tmp_path / "rows.npy",
            100,
            compute,
            fingerprint="a",
            accelerator=accelerator,
            batch_size=4,
            title="rows",
            dtype=dtype,
        )

    rows = torch.arange(100)
    values = torch.stack([rows, rows**2], dim=1)[:, None].float()
    whole = run(Squares(), "float32")
    size = whole.path.stat().st_size
    assert torch.equal(whole[rows], values)
    compute = Squares()
    rounded = run(compute, "bfloat16")
    assert len(compute.asked) > 0
    assert rounded[rows].dtype == torch.float32
    assert torch.equal(rounded[rows], values.bfloat16().float())
    assert not torch.equal(rounded[rows], values)
    assert rounded.path.stat().st_size - 128 == (size - 128) / 2
    again = Squares()
    run(again, "bfloat16")
    assert again.asked == []
    run(again, "float32")
    assert len(again.asked) > 0
