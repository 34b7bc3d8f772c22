"""A run ends although a loader's workers ignore the first signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.training.flag_checks import LOCAL_NAMES, NAMES, check_local, check_not_blank


UNREAD = """
from torch.utils.data import DataLoader
from autoprog_diffusion.training.ends import keeping_workers_alive

loader = DataLoader(range(1000), num_workers=2, worker_init_fn=keeping_workers_alive())
batches = iter(loader)
print(next(batches))
"""
FORKED = """
import multiprocessing

def run():
    from torch.utils.data import DataLoader
    from autoprog_diffusion.training.ends import keeping_workers_alive

    loader = DataLoader(range(1000), num_workers=2, worker_init_fn=keeping_workers_alive())
    run.batches = iter(loader)
    print(next(run.batches), flush=True)

process = multiprocessing.get_context("fork").Process(target=run)
process.start()
process.join()
print(process.exitcode)
"""


def test_resume_workers_of_a_forked_run_do_not_hold_it() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensor([0])\n0\n", "")


def test_resume_workers_of_a_loader_that_is_not_read_to_its_end_do_not_hold_the_run() -> None:
    done = subprocess.run([sys.executable, "-c", UNREAD], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensor([0])\n", "")


def test_reader_refuses_an_empty_name() -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match=f"--{name} is empty"):
            check_not_blank({name: " "})
        check_not_blank({name: None})
        check_not_blank({name: "data"})


def test_data_that_is_not_there_is_refused_with_the_place_where_it_was_looked_for(tmp_path: Path) -> None:
    for name in LOCAL_NAMES:
        with pytest.raises(ConfigError, match=rf"--{name} pictures/of/nobody does not exist \(looked for in /"):
            check_local({name: "pictures/of/nobody"})
        with pytest.raises(ConfigError, match="none does not exist: give"):
            check_local({name: str(tmp_path / "none")})
        check_local({name: str(tmp_path)})
        check_local({name: None})
