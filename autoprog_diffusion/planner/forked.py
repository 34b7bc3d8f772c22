"""A measurement in a process of its own, which has the imports of this one already."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Forked:
    """`function(*args)` in a child of this process, which goes on meanwhile.

    Args:
        function: Returns what can be pickled.
        args: Its arguments.
        quiet: Whether what it raises is not printed.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, quiet: bool = False) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_send, args=(there, function, args, quiet))
        self._process.start()
        there.close()

    def result(self) -> Any:
        """What the function returned; what it raised, as `{"refused": text}`."""
        try:
            return self._here.recv()
        except EOFError:
            return {"refused": "the process ended without a word"}
        finally:
            self._process.join()


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in a child of this process; what it raises, as `{"refused": text}`."""
    return Forked(function, *args).result()


def _send(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...], quiet: bool) -> None:
    try:
        connection.send(function(*args))
    except Exception as error:  # of any library: the table says what it was
        if not quiet:
            traceback.print_exc()
        connection.send({"refused": f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}"})
