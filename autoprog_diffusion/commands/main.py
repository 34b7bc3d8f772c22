"""Finds the subcommand that a command line names, and runs it.

A subcommand is a module of this folder with a function `run(argv) -> int`, which parses the words after its name, by
tyro, and returns an exit code. It is imported only when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from autoprog_diffusion.growth.errors import GrowthError


NAME = "autoprog-diffusion"
# Name of a subcommand, which is that of its module -> one line for --help.
COMMANDS: dict[str, str] = {
    "calibrate": "measure how fast this machine trains, in under a minute",
    "patch": "put growth into a training script of Diffusers' kind, as a diff",
    "plan": "memory, FLOPs and time of a run before it starts, and what fits a GPU",
    "report": "write the report of one or several runs, as one page of HTML",
}
# Exit codes: 0 is success. Subcommands may have others above these.
FAILED = 1
USAGE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line, and end the process with an exit code.

    0 is success, 1 an error that is told in one line, and 2 a command line that cannot be read.

    Args:
        argv: Words after the name of the program; those of this process by default.

    Raises:
        SystemExit: Always; its code is the exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0 if words else USAGE)
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(USAGE)
    try:
        code = importlib.import_module(f"autoprog_diffusion.commands.{name}").run(rest)
    except GrowthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    sys.exit(code)


def overview() -> str:
    """The help text: what the program is for, and its subcommands."""
    lines = [f"usage: {NAME} COMMAND ...", ""]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    lines += ["", f"`{NAME} COMMAND --help` lists the flags of one."]
    return "\n".join(lines)


def unknown(name: str) -> str:
    """What is wrong with a name that is no subcommand."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"there is no command {name!r}: use one of {', '.join(COMMANDS)}.{meant}"
