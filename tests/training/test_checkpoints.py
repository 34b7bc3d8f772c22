from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion.training.checkpoints import save_checkpoint


@pytest.mark.parametrize(("limit", "oldest"), [(1, 6), (4, 3), (5, 2), (9, 1)])
def test_the_limit_keeps_the_newest_and_no_fewer(accelerator: Any, tmp_path: Path, limit: int, oldest: int) -> None:
    # A limit above their number once counted from the end of the list and deleted the oldest too early.
    for step in range(1, 7):
        save_checkpoint(accelerator, tmp_path, step, limit)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == list(range(oldest, 7))
