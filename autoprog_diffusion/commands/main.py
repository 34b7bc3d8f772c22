"""Finds the subcommand that a command line names, and runs it.

A subcommand is a module of this folder with a function `run(argv) -> int`, which parses the words after its name and
returns an exit code, and a dataclass `Arguments`. It is imported only when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import autoprog_diffusion
from autoprog_diffusion.command_line import NAME
from autoprog_diffusion.growth.errors import GrowthError


# Name of a subcommand, which is that of its module -> one line for --help.
COMMANDS: dict[str, str] = {
    "train": "fine-tune or pretrain a model with a recipe",
    "patch": "put growth into a training script of Diffusers' kind, as a diff",
    "plan": "memory, FLOPs and time of a run before it starts, and what fits a GPU",
    "report": "write the report of one or several runs, as one page of HTML",
    "families": "list the pipelines that can be trained, and by which recipes",
    "calibrate": "measure how fast this machine trains, in under a minute",
    "completion": "print a script that completes this program in a shell",
}
# Exit codes: 0 is success. Subcommands may have others above these.
FAILED = 1
USAGE = 2
INTERRUPTED = 130
# Modules of one extra alone -> that extra; every other one comes with `recipes`.
EXTRAS = {"libcst": "patch", "timm": "vit", "torchao": "low_precision"}


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
    if words[0] == "--version":
        print(f"{NAME} {autoprog_diffusion.__version__}")
        sys.exit(0)
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(USAGE)
    sys.exit(exit_code(name, rest))


def exit_code(name: str, words: Sequence[str]) -> int:
    """Run a subcommand; an error that is a user's to mend is told in one line.

    Args:
        name: Of the subcommand.
        words: That follow it.

    Returns:
        The exit code.
    """
    try:
        return importlib.import_module(f"autoprog_diffusion.commands.{name}").run(words)
    except GrowthError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing == autoprog_diffusion.__name__:
            raise
        extra = f"[{EXTRAS[missing]}]" if missing in EXTRAS else ""
        install = f'pip install "autoprog-diffusion{extra}"'
        print(f"error: `{NAME} {name}` needs {missing}, which is not installed: {install}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # What reads the output has closed it, as `head` does. Python would fail once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def overview() -> str:
    """The help text: what the program is for, its subcommands and its exit codes."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: {NAME} COMMAND ...", "", "Fine-tune diffusion models in stages.", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        f"`{NAME} COMMAND --help` lists the flags of one, `{NAME} --version` prints the version.",
        "Exit codes: 0 success, 1 an error that is told in one line, 2 a command line that cannot be read.",
    ]
    return "\n".join(lines)


def unknown(name: str) -> str:
    """What is wrong with a name that is no subcommand."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"there is no command {name!r}: use one of {', '.join(COMMANDS)}.{meant}"
