"""Signals that end a run early: the step is finished, a checkpoint written, and the command that goes on printed."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.util
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from autoprog_diffusion.command_line import MODULE, is_command, typed_command

from .arguments import take_flag


# Ctrl-C, a scheduler's end, a closed terminal, and what SLURM sends ahead of a time limit on request (--signal).
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
# Seconds in which signals count as one: a terminal and a launcher each pass the same Ctrl-C to every process.
GRACE = 2.0
ATTEMPTS = 50  # to end a worker


class Stopped(SystemExit):
    """A signal ended the run; the exit status is 128 + its number, as of a process that it killed.

    Attributes:
        name: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class Ends:
    """Listens for signals inside a `with` block.

    Until `defer` is called, a signal raises `Stopped` where the program stands: there is nothing to keep yet. From
    then on the first signal is noted, and the loop asks for it; a second one ends the process at once.

    Attributes:
        noted: Number of the signal that was received first; 0 without one.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._since = 0.0
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._launcher: int | None = None

    def __enter__(self) -> Ends:
        self._launcher = os.getppid() if launcher_command() else None
        # Python lets only the main thread set handlers. What is ignored (nohup, a job in the background) stays so.
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def defer(self) -> None:
        """From now on note the first signal instead of raising."""
        self._deferred = True

    @property
    def asked(self) -> int:
        """Number of the signal that asks this process to stop, or 0.

        The end of a launcher that passes no signals on (`accelerate launch` of one process) counts as SIGTERM.
        """
        if not self.noted and self._launcher is not None and os.getppid() != self._launcher:
            self.noted = signal.SIGTERM
        return self.noted

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self._deferred:
            raise Stopped(number)
        now = time.monotonic()
        if not self.noted:
            self.noted = number
            self._since = now
            if is_first_process():
                name = signal.Signals(number).name
                say(f"{name}: ending after this step, with a checkpoint. Another signal ends at once.")
        elif now - self._since > GRACE:
            os._exit(128 + number)


def say(text: str) -> None:
    """Print a line from a signal handler, where the streams of Python may be in use."""
    os.write(2, f"\n{text}\n".encode())


def is_first_process() -> bool:
    """Whether a launcher gave this process the first rank, or there is no launcher."""
    return os.environ.get("RANK", "0") == "0"


def keeping_workers_alive() -> Callable[[int], None]:
    """Let a loader's workers outlive the first signal, which a terminal or SLURM sends to all processes.

    The training process ends its workers itself; it does so with SIGTERM where they do not end otherwise, so the
    second one counts.

    Returns:
        For `DataLoader(worker_init_fn=...)`.
    """
    _end_workers_at_exit(os.getpid())
    return _outlive_the_first_signal


@functools.cache
def _end_workers_at_exit(process: int) -> None:
    """Once in a process, however many loaders it makes; a forked one inherits nothing that runs at its exit."""
    del process
    # Called before `multiprocessing` sends its workers one signal, and waits. `atexit` would miss a forked process.
    multiprocessing.util.Finalize(None, _end_workers, exitpriority=100)


def _outlive_the_first_signal(worker: int) -> None:
    del worker

    def ignore_once(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)

    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, ignore_once)


def _end_workers() -> None:
    """End the workers of loaders that are not read to their end, which ignore the first signal.

    `multiprocessing` would send one, and wait for ever.
    """
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        # PyTorch's handler takes a worker that a signal ends for a crash.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        for _ in range(ATTEMPTS):
            if not worker.is_alive():
                break
            worker.terminate()
            worker.join(0.1)


def resume_command() -> str:
    """The command line of this run with `--resume_from_checkpoint latest`, its launcher's where it has one."""
    words = launcher_command() or (typed_command(sys.argv) if is_command(sys.argv) else [*sys.orig_argv])
    words[0] = "python" if Path(words[0]).name.startswith("python") else words[0]
    _, words = take_flag(words, "resume_from_checkpoint")
    # A deleted run could not go on.
    words = [word for word in words if word.replace("-", "_") != "__overwrite_output_dir"]
    return shlex.join([*words, "--resume_from_checkpoint", "latest"])


def launcher_command() -> list[str] | None:
    """The command line of `accelerate launch` or torchrun, where one of them is this process's parent."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    return shortened(words, [MODULE, *sys.argv[1:]] if is_command(sys.argv) else sys.argv)


def shortened(words: Sequence[str], script: Sequence[str]) -> list[str] | None:
    """A launcher's command line as a user types it; None where it does not end with the script's own.

    Example:
        >>> shortened(["/env/bin/python3", "/env/bin/accelerate", "launch", "a.py", "-x"], ["a.py", "-x"])
        ['accelerate', 'launch', 'a.py', '-x']
    """
    own = list(script)
    start = len(words) - len(own)
    if start < 2 or list(words[start:]) != own:
        return None
    launcher = list(words[:start])
    if Path(launcher[0]).name.startswith("python") and not launcher[1].startswith("-"):
        launcher = [Path(launcher[1]).name, *launcher[2:]]
    return [*launcher, *own]
