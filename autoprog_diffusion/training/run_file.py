"""`run.yaml`: the flags of a run in one file, which `--config` reads, and which is written beside every run.

A file maps the names of flags to their values. Every value is read as text, which the flag then understands as if it
stood on a command line: `growth: off` is the word off, and `learning_rate: 1e-4` a number, unlike in most YAML.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprog_diffusion.command_line import Flag
from autoprog_diffusion.growth.errors import ConfigError

from .arguments import take_flag
from .flag_checks import EITHER, given_flags


RECIPE = "recipe"  # the key that names what reads the other ones
# Keys of Accelerate's own files, which say on which processes a run takes place.
OF_ACCELERATE = frozenset({"compute_environment", "distributed_type", "num_processes", "num_machines"})
LARGEST = 2**20  # bytes; a file of flags has a few thousand
SWITCH = {"true": True, "false": False}
EMPTY = ("null", "~", "")
PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))  # of what has no tag in the file


@dataclass(frozen=True)
class Value:
    """The value of a flag in a file.

    Attributes:
        words: As on a command line; None where the file says null.
        is_list: Whether it is a list.
        line: Of the file, from 1 on.
    """

    words: tuple[str, ...] | None
    is_list: bool
    line: int


@dataclass(frozen=True)
class RunFile:
    """What a file holds.

    Attributes:
        path: Of the file.
        recipe: Name of the recipe, or None where the file has none.
        values: Flag -> value, in the order of the file.
    """

    path: Path
    recipe: str | None
    values: Mapping[str, Value]


def read_run_file(path: Path) -> RunFile:
    """Read a file; nothing in it is run, and no object is built from it but text and lists of text.

    Raises:
        ConfigError: The file cannot be read, or holds something else than flags and their values; the message has the
            line.
    """
    import yaml

    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError(f"--config {path} has {size} bytes, too many for a file of flags: name another one.")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}. Name a file of flags.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} is not YAML: {reason}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"--config {path} holds no flags: write a line such as `train_batch_size: 4` for each.")
    values: dict[str, Value] = {}
    recipe = None
    for key, node in root.value:
        name, value = _entry(path, key, node)
        if name in values or (name == RECIPE and recipe is not None):
            raise ConfigError(f"{path}, line {value.line}: {name} is there twice: remove one.")
        if name == RECIPE:
            recipe = " ".join(value.words or ())
        else:
            values[name] = value
    return RunFile(path, recipe, values)


def _entry(path: Path, key: Any, node: Any) -> tuple[str, Value]:
    """The name and the value of a line.

    Raises:
        ConfigError: They are no text, list of text, or pairs of text.
    """
    line = key.start_mark.line + 1
    name = _text(path, key).replace("-", "_")
    if node.id == "sequence" and node.tag in PLAIN:
        return name, Value(tuple(_text(path, item) for item in node.value), True, line)
    if node.id == "mapping" and node.tag in PLAIN:
        pairs = [_text(path, item) for pair in node.value for item in pair]
        return name, Value(tuple(pairs), True, line)
    text = _text(path, node)
    if node.style is None and text.lower() in EMPTY:
        return name, Value(None, False, line)
    return name, Value((text,), False, line)


def _text(path: Path, node: Any) -> str:
    if node.id != "scalar" or node.tag not in PLAIN:
        raise ConfigError(
            f"{path}, line {node.start_mark.line + 1}: a flag takes text, numbers or a list of them, not {node.id}s "
            f"inside of others, and no tag such as {node.tag!r}."
        )
    return node.value


def words_of(file: RunFile, flags: Mapping[str, Flag]) -> list[str]:
    """The words that a command line would have in place of the file.

    Args:
        file: What was read.
        flags: Name -> flag, of all that there are.

    Raises:
        ConfigError: There is no such flag, or it does not take such a value; the message has the line, and near names.
    """
    words: list[str] = []
    for name, value in file.values.items():
        where = f"{file.path}, line {value.line}"
        if name in OF_ACCELERATE:
            raise ConfigError(
                f"{where}: {name} is a key of Accelerate's configuration, which `accelerate launch --config_file "
                f"{file.path}` takes; --config takes flags of a recipe."
            )
        if name not in flags:
            near = difflib.get_close_matches(name, flags, n=2)
            meant = f" Did you mean {' or '.join(near)}?" if near else " --help lists the flags."
            raise ConfigError(f"{where}: there is no flag {name}.{meant}")
        words += _words(where, flags[name], value)
    return words


def _words(where: str, flag: Flag, value: Value) -> list[str]:
    name = f"--{flag.name}"
    if value.words is None:
        if not flag.optional:
            raise ConfigError(f"{where}: {flag.name} needs a value, and null is none: give one, or remove the line.")
        return [name, "None"]
    if flag.switch:
        text = " ".join(value.words).lower()
        if text not in SWITCH or value.is_list:
            raise ConfigError(f"{where}: {flag.name} {text!r} is not allowed: use true or false.")
        return [name] if SWITCH[text] else [f"--no-{flag.name}"]
    if value.is_list and not flag.many:
        raise ConfigError(f"{where}: {flag.name} takes one value, and the file has a list: write one value.")
    if not value.is_list:
        return [f"{name}={value.words[0]}"] if not flag.many else [name, value.words[0]]
    if any(word.startswith("--") for word in value.words):
        raise ConfigError(f"{where}: a value of {flag.name} begins with two hyphens, which only flags do: change it.")
    return [name, *value.words]


def with_run_file(argv: Sequence[str], recipe: str, flags: Mapping[str, Flag]) -> list[str]:
    """A command line with the flags of its `--config` file in front, those that it does not give itself.

    Args:
        argv: Words of the command line.
        recipe: Name of the recipe.
        flags: Name -> flag, of all that the recipe has.

    Raises:
        ConfigError: The file cannot be read, is another recipe's, or holds what is no flag.
    """
    name, words = take_flag(argv, "config")
    if name is None:
        return words
    if not name:
        raise ConfigError("--config needs the name of a file of flags, such as the run.yaml of an earlier run.")
    file = read_run_file(Path(name))
    if file.recipe is not None and recipe and file.recipe != recipe:
        raise ConfigError(
            f"--config {file.path} is of the recipe {file.recipe}, and this is {recipe}: use `autoprog-diffusion "
            f"train {file.recipe}`, or remove the line `{RECIPE}: {file.recipe}`."
        )
    given = set(given_flags(words))
    # A flag of the command line also wins over one of the file that would make it have no effect.
    beaten = {winner for winner, loser in EITHER if loser in given and winner not in given}
    values = {flag: value for flag, value in file.values.items() if flag not in given | beaten}
    return [*words_of(RunFile(file.path, file.recipe, values), flags), *words]


def values_of(words: Sequence[str], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Flag -> value as a file holds it, of all flags of a command line; the last one of a name counts.

    Args:
        words: Of the command line.
        flags: Name -> flag, of all that there are; others are left out.

    Example:
        >>> flags = [Flag("seed"), Flag("boundaries", many=True), Flag("buckets", switch=True)]
        >>> known = {flag.name: flag for flag in flags}
        >>> values_of(["--seed=3", "--boundaries", "0.5", "1", "--no-buckets"], known)
        {'seed': '3', 'boundaries': ['0.5', '1'], 'buckets': False}
    """
    found: dict[str, list[str]] = {}
    switches: dict[str, bool] = {}
    current: list[str] = []
    for word in words:
        if not word.startswith("--"):
            current.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        switches[name.removeprefix("no_")] = not name.startswith("no_")
        current = [value] if equals else []
        found[name.removeprefix("no_")] = current
    values: dict[str, Any] = {}
    for name, texts in found.items():
        if name not in flags:
            continue
        if flags[name].switch:
            values[name] = switches[name]
        else:
            values[name] = texts if flags[name].many else " ".join(texts)
    return values
