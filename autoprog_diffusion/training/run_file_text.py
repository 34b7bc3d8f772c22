"""The text of a `run.yaml`, from the flags of a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprog_diffusion.command_line import Flag
from autoprog_diffusion.files import write_text_atomically

from .flag_classes import OF_THE_START
from .run_file import RECIPE, values_of


FILE = "run.yaml"
MARK = "# Written by autoprog-diffusion"
WIDTH = 2**20  # of a line: values are not broken into several
KEPT = "run.before.yaml"  # what a user wrote under the same name


def run_file_text(
    recipe: str,
    words: Sequence[str],
    flags: Mapping[str, Flag],
    *,
    chosen: Mapping[str, Any],
    versions: Mapping[str, str],
    num_processes: int,
) -> str:
    """The text of a file that repeats a run.

    Args:
        recipe: Its name, or nothing.
        words: Its command line, without the program.
        flags: Name -> flag, of all that the recipe has.
        chosen: Flag -> value, of what no flag said and the machine chose.
        versions: Package -> version.
        num_processes: Of the run.
    """
    given = values_of(words, flags)
    command = "autoprog-diffusion train"
    if num_processes > 1:
        command = f"accelerate launch --num_processes {num_processes} -m autoprog_diffusion train"
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{MARK}: the flags of a run; all others had the defaults of their version.",
        f"# {known}",
        f"# Again: {command} --config {FILE} --output_dir ANOTHER_FOLDER",
    ]
    if recipe:
        lines.append(f"{RECIPE}: {recipe}")
    # A file that deletes or resumes a run would do so whenever it is read.
    leaves_out = OF_THE_START - {"output_dir"}
    lines += [_line(name, value) for name, value in given.items() if name not in leaves_out]
    rest = {name: value for name, value in chosen.items() if name not in given}
    if rest:
        lines += ["# What the machine chose, and the last bits of a result depend on:"]
        lines += [_line(name, value) for name, value in rest.items()]
    return "\n".join(lines) + "\n"


def write_run_file(folder: Path, text: str) -> None:
    """Write the file of a run; one that a user wrote keeps its text under another name.

    Args:
        folder: Of the output.
        text: Of the file.
    """
    file = folder / FILE
    if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        file.replace(folder / KEPT)
    write_text_atomically(file, text)


def _line(name: str, value: Any) -> str:
    """A line of YAML, whose value is read back as the same text, here and by other readers."""
    import yaml

    if isinstance(value, list):
        values = [_plain(text) for text in value]
        text = yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=WIDTH)
        return f"{name}: {text}".rstrip("\n")
    text = yaml.safe_dump({name: _plain(value)}, default_flow_style=False, allow_unicode=True, width=WIDTH)
    return text.rstrip("\n")


def _plain(value: Any) -> Any:
    """A number where its text is that of the number, and null for None; else the text."""
    import yaml

    if value == "None":
        return None
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if yaml.safe_dump(number).split("\n")[0] == value:
            return number
    return value
