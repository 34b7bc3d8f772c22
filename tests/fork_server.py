"""Scripts in processes forked from one that has imported torch and Diffusers, so that a start costs no imports.

Every call starts processes of its own, which share nothing with the test's; only the imports come from the fork server
of `multiprocessing`, one per pytest process. That server finds its modules by name, so this one is imported as
`fork_server`, with its folder on `sys.path`: an installed package is called `tests`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


# Seconds after which processes count as hung. A healthy launch takes about ten on an idle machine; a busy one must not
# fail, and a hang costs this once.
HANG = 900
PRELOADED = ["accelerate", "autoprog_diffusion.adapters", "settings"]


def _run(script: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str, log: str) -> None:
    """Be `python script arguments` in `folder`, and write what it prints to `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch has read the server's already
    gc.freeze()  # what the server has imported is no garbage, and growth looks through all that may be
    sys.argv, sys.path[0] = [script, *arguments], str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def rank_environments(ranks: int, base: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """The environment of every rank, as torchrun sets it."""
    shared = {**base, "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def launch_environments(processes: int, base: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """The environment of every process of a recipe: ranks under torchrun, or one plain process."""
    return rank_environments(processes, base) if processes > 1 else [{**base, "OMP_NUM_THREADS": "1"}]


def run_forked(
    script: Path, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path
) -> None:
    """Run a script once per environment, at the same time; the first failure and `HANG` seconds end all.

    Raises:
        RuntimeError: A process failed or did not end; the message is what it printed last.
    """
    codes, printed = forked_results(script, arguments, environments, folder)
    if any(code != 0 for code in codes):
        # The one that failed says why; the others only miss it.
        worst = next((index for index, code in enumerate(codes) if code), None)
        raise RuntimeError(f"exit codes {codes}: {printed[codes.index(None) if worst is None else worst][-4000:]}")


def forked_results(
    script: Path, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path
) -> tuple[list[int | None], list[str]]:
    """Run a script as `run_forked` does; exit codes, None for a process that was ended, and what each printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    logs = [folder / f"process{index}.log" for index in range(len(environments))]
    processes = [
        context.Process(target=_run, args=(str(script), tuple(arguments), dict(environment), str(folder), str(log)))
        for environment, log in zip(environments, logs)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + HANG
    try:
        while any(process.exitcode is None for process in processes):
            if time.monotonic() > deadline or any(process.exitcode for process in processes):
                break
            time.sleep(0.02)
    finally:
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
    return codes, [log.read_text(errors="replace") for log in logs]
