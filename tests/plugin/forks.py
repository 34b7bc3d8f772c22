"""Training scripts in forks of a process that has imported what all of them import."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path


LIMIT = 600  # seconds of one run


def import_hosts() -> None:
    """Import what is slow to import, before the forks."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers.training_utils  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torchvision.transforms  # noqa: F401
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def run_forked(command: list[str], log: Path, *, stand_ins: Iterable[str] = ()) -> int:
    """Run a script with its arguments in a fork, its output in a file; returns its exit status, 124 out of time."""
    child = os.fork()
    if child == 0:
        os.setsid()  # a dataloader's workers are killed with it
        stand_in(stand_ins)
        os._exit(be_script(command, log))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def stand_in(packages: Iterable[str]) -> None:
    """Put a file of `stand_ins` where a package is missing."""
    for name in packages:
        if find_spec(name) is None:
            loader = SourceFileLoader(name, str(Path(__file__).parent / "stand_ins" / f"{name}.py"))
            module = module_from_spec(spec_from_loader(name, loader))  # pyright: ignore[reportArgumentType]
            sys.modules[name] = module
            loader.exec_module(module)


def be_script(command: list[str], log: Path) -> int:
    """Run a script in this process, with seed 0."""
    import random
    import runpy
    import traceback

    import datasets
    import numpy as np
    import torch

    # What another run has cached would be loaded, and leave the generators in another state.
    datasets.config.HF_DATASETS_CACHE = log.with_suffix(".cache")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")
    os.chdir(log.parent)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # Not every script shows what libraries log: the table reads there which stages began.
    ours = logging.getLogger("autoprog_diffusion")
    ours.setLevel(logging.INFO)
    ours.addHandler(logging.StreamHandler(sys.stderr))
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    status = 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0) if isinstance(end.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def last_error(log: Path) -> str:
    """The last line of an error message, without the error's module."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b|.*: error: ", line)]
    last = (named or ["it ran out of time"])[-1]
    return re.sub(r"^(\w+\.)+(?=\w+:)", "", last)[:300]
