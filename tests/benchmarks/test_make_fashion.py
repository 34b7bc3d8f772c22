"""Fashion-MNIST is written as the readers of this project expect it, and another file is refused."""

from __future__ import annotations

import gzip
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def fashion(benchmark_folder: Callable[[str], Path]) -> ModuleType:
    benchmark_folder("vit_growth")
    return importlib.import_module("make_fashion")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)


@pytest.fixture
def package(fashion: ModuleType, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four files of the package's format, of 12 images each."""
    labels = np.arange(12, dtype=np.uint8) % 10
    for name in fashion.SHA256:
        content = bytes(16) + images.tobytes() if "images" in name else bytes(8) + labels.tobytes()
        (tmp_path / name).write_bytes(gzip.compress(content))
        monkeypatch.setitem(fashion.SHA256, name, hashlib.sha256(content).hexdigest())
    return tmp_path


def test_a_part_is_read_back_with_the_names_of_its_classes(
    fashion: ModuleType, package: Path, images: np.ndarray, tmp_path: Path
) -> None:
    from autoprog_diffusion.data.decode import open_image, undecoded
    from autoprog_diffusion.data.tables import read_parquet

    target = tmp_path / "out" / "fashion_test.parquet"
    assert fashion.write(package, "test", target) == 12
    data = read_parquet([target], "label")
    assert data.features["label"].names == list(fashion.NAMES)
    assert data["label"][:] == [*range(10), 0, 1]
    rows = undecoded(data)
    for row, image in enumerate(images):
        assert np.array_equal(np.asarray(open_image(rows, row)), image)


def test_another_file_is_refused(fashion: ModuleType, package: Path) -> None:
    name = "train-labels-idx1-ubyte.gz"
    (package / name).write_bytes(gzip.compress(bytes(20)))
    with pytest.raises(fashion.DataError, match=f"{name} is not that of Debian's dataset-fashion-mnist"):
        fashion.arrays(package, "train")
    for damaged in (b"no gzip file", gzip.compress(bytes(20))[:-9]):
        (package / name).write_bytes(damaged)
        with pytest.raises(fashion.DataError, match=f"{name} cannot be read"):
            fashion.arrays(package, "train")
    (package / name).unlink()
    with pytest.raises(fashion.DataError, match=f"{name} cannot be read"):
        fashion.arrays(package, "train")
