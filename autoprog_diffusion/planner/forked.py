"""A measurement in a process of its own, which has the imports of this one already."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(*args)` returns in a child of this process; what it raises, as `{"refused": text}`."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, args))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return {"refused": "the process ended without a word"}
    finally:
        process.join()


def _send(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        connection.send(function(*args))
    except Exception as error:  # of any library: the table says what it was
        traceback.print_exc()
        connection.send({"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
