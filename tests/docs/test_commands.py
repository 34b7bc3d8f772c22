"""Every command line of every page can be given: its script is there, and its flags are read as they stand."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Callable

import pytest

from autoprog_diffusion.commands.train import RECIPES

from .pages import ROOT, Block, blocks, module_at


# What shells, package managers and this repository's tools do is not looked into.
OTHERS = (
    ". ",
    "python3 -m venv",
    "pip install",
    "python -m pytest",
    "python -m build",
    "make ",
    "export ",
    "srun ",
    "patch ",
    "accelerate launch examples/",
)
LAUNCHER = re.compile(r"^(?:\w+=\S+ )*(?:accelerate launch .*?(?=\S+\.py)|python )")


def lines() -> list[tuple[Block, str]]:
    """Command lines, those that are continued in one piece, without comments."""
    found = []
    for block in blocks("bash"):
        code = block.code.replace("\\\n", " ")
        for line in re.split(r"\n|&&", code):
            words = shlex.split(line, comments=True)
            if words:
                found.append((block, shlex.join(words)))
    return found


LINES = [(block, line) for block, line in lines() if not line.startswith(OTHERS)]


def read_recipe(path: str, words: list[str]) -> None:
    """Parse the words as the recipe in a file does."""
    module = module_at(path)
    script = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and hasattr(value, "parse") and not getattr(value, "__abstractmethods__", ())
    )
    script().parse(words)


def read_own(words: list[str]) -> None:
    """A subcommand exists, and its help names the flags."""
    name, *rest = words
    if name == "train":
        recipe = rest[0] if rest and not rest[0].startswith("-") else "sd"
        flags = {"config", *getattr(RECIPES[recipe].load(), RECIPES[recipe].kind)().flags()}
        assert {word[2:] for word in rest if word.startswith("--")} <= flags
        return
    module = importlib.import_module(f"autoprog_diffusion.commands.{name}")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        module.run(["--help"])
    known = text.getvalue().replace("-", "_")
    for word in rest:
        if word.startswith("--"):
            assert word.replace("-", "_") in known, f"{word} is no flag of {name}"


def read_script(path: str, words: list[str]) -> None:
    """A script of its own parser exists, and names the flags, or a module beside it that goes by its name does."""
    files = [ROOT / path, *(ROOT / path).with_suffix("").glob("*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    for word in words:
        if word.startswith("--"):
            assert word.lstrip("-").partition("=")[0] in text, f"{word} is no flag of {path}"


def reader_of(path: str) -> Callable[[str, list[str]], None]:
    return read_recipe if path.startswith(("recipes/", "vit/")) and path not in PLAIN else read_script


# Scripts with a parser of their own.
PLAIN = ("recipes/minimal.py", "vit/asvit.py")


@pytest.mark.parametrize("page", sorted({block.page for block, _ in LINES}))
def test_command_lines_are_read(page: str) -> None:
    for block, line in LINES:
        if block.page == page:
            read(block, line)


def read(block: Block, line: str) -> None:
    line = LAUNCHER.sub("python ", line, count=1).replace(
        "python -m autoprog_diffusion.commands", "autoprog-diffusion"
    )
    if line.startswith(OTHERS):
        return
    program, *words = shlex.split(line)
    if program == "autoprog-diffusion":
        read_own(words)
        return
    assert program == "python", f"{block}: {line!r} is no command that a page may have"
    path, *flags = words
    assert (ROOT / path).is_file(), f"{block}: there is no {path}"
    reader_of(path)(path, flags)


def test_a_wrong_flag_is_found() -> None:
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        read_recipe("recipes/finetune_sd.py", ["--output_dir", "out", "--learning_rat", "1"])
    with pytest.raises(AssertionError, match="no flag"):
        read_own(["plan", "--gpuu"])
