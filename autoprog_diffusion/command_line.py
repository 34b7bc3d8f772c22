"""Command lines are read and described in one way: flags with underscores, and their names, values and kinds."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin


NAME = "autoprog-diffusion"
MODULE = "autoprog_diffusion"  # `python -m` and `accelerate launch -m` take it for the command
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Flag:
    """A flag of a command line.

    Attributes:
        name: Without hyphens in front, with underscores.
        choices: Values that it takes, where they are a list.
        switch: Whether it takes no value: `--name` and `--no-name`.
        many: Whether it takes several values.
        optional: Whether it takes None.
    """

    name: str
    choices: tuple[str, ...] = ()
    switch: bool = False
    many: bool = False
    optional: bool = False


def parse(
    kind: Callable[..., Kind],
    words: Sequence[str],
    *,
    default: Any = None,
    description: str | None = None,
    program: str | None = None,
) -> Kind:
    """The arguments in the words of a command line.

    Args:
        kind: Dataclass of the arguments.
        words: Of the command line, without the program's name.
        default: Values of the flags that are not given; those of the class by default.
        description: For --help, in place of the docstring of the class.
        program: Its name, for --help and errors; that of this process by default.

    Raises:
        SystemExit: With code 0 after --help, with 2 where the words cannot be read.
    """
    import tyro

    defaults = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=list(words),
        prog=program or program_name(),
        description=description,
        use_underscores=True,
        **defaults,
    )


def is_command(argv: Sequence[str]) -> bool:
    """Whether `sys.argv` is one of `autoprog-diffusion`, as a program or as a module of Python."""
    program = Path(argv[0])
    as_module = program.name == "__main__.py" and MODULE in program.parent.parts[-2:]
    return as_module or program.stem == NAME


def typed_command(argv: Sequence[str]) -> list[str]:
    """`sys.argv` as a user types it: `autoprog-diffusion` by its name, a script by its path.

    Example:
        >>> typed_command(["/env/bin/autoprog-diffusion", "train", "sd"])
        ['autoprog-diffusion', 'train', 'sd']
    """
    return [NAME, *argv[1:]] if is_command(argv) else list(argv)


def launch_words(command: Sequence[str], processes: int) -> list[str]:
    """The command line that starts a command on so many processes, without quotes.

    Args:
        command: As `typed_command`.
        processes: Number of processes.

    Example:
        >>> launch_words(["autoprog-diffusion", "train", "sd"], 2)
        ['torchrun', '--nproc_per_node', '2', '-m', 'autoprog_diffusion', 'train', 'sd']
    """
    ours = bool(command) and command[0] == NAME
    if processes > 1:
        program = ["-m", MODULE, *command[1:]] if ours else list(command)
        return ["torchrun", "--nproc_per_node", str(processes), *program]
    return list(command) if ours else ["accelerate", "launch", *command]


def script_name(command: Sequence[str]) -> str:
    """The script of a command, or our command and the recipe that it names.

    Args:
        command: As `typed_command`.
    """
    if not command:
        return "an unknown script"
    if command[0] != NAME:
        return Path(command[0]).name
    words = [word for word in command[1:3] if not word.startswith("-")]
    return " ".join([NAME, *words])


def program_name() -> str:
    """This process's program and its subcommands, as a user types them."""
    return script_name(typed_command(sys.argv))


def flags_of(kind: type) -> dict[str, Flag]:
    """Name -> flag, of all flags of a dataclass of arguments, those in its groups too.

    Args:
        kind: The dataclass; a field whose type is a dataclass is a group.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        if any(_is_no_flag(mark) for mark in marks):
            continue
        plain = hint.__origin__ if marks else hint
        if dataclasses.is_dataclass(plain) and isinstance(plain, type):
            found |= flags_of(plain)
        else:
            found[field.name] = _flag(field.name, plain)
    return found


def _is_no_flag(mark: Any) -> bool:
    """Whether a field with this mark of tyro's is no flag: its value is derived, or it is positional."""
    return getattr(mark, "name", str(mark)).lower() in ("suppress", "fixed", "positional")


def _flag(name: str, hint: Any) -> Flag:
    union = get_origin(hint) in (typing.Union, types.UnionType)
    members = get_args(hint) if union else (hint,)
    values = [member for member in members if member is not type(None)]
    choices: list[str] = []
    for value in values:
        if get_origin(value) is Literal:
            choices += [str(choice) for choice in get_args(value)]
    return Flag(
        name,
        tuple(choices),
        switch=values == [bool],
        many=any(get_origin(value) in (tuple, list, dict, Mapping) for value in values),
        optional=len(values) < len(members),
    )
