"""`autoprog-diffusion patch SCRIPT`: puts growth into a training script, or says why it does not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from autoprog_diffusion.command_line import parse
from autoprog_diffusion.patching.errors import PatchError


REFUSED = 1


@dataclass(frozen=True)
class Arguments:
    """Put growth into a training script of Diffusers' kind, and print the change as a diff.

    A script that is not understood is refused, with the line and the reason. Nothing is written without --write.
    """

    script: Annotated[Path, tyro.conf.Positional]
    """The training script."""
    write: bool = False
    """Change the script, instead of printing the diff."""
    check: bool = False
    """Only say whether it can be patched: exit code 0 or 1."""
    model: str | None = None
    """Variable of the model that grows, where the script trains several."""
    steps: str | None = None
    """Number of optimizer steps as an expression of the script, where its loop does not show it."""
    schedule: Literal["late", "even"] = "late"
    """late: freeze late in the run, as measured best, adapters never. even: freeze in four even stages."""
    average: Literal["auto", "on", "off"] = "auto"
    """Let an average of the weights be the result; auto: where the script has none of its own."""
    comments: bool = True
    """Say in every added line what it does."""
    json: bool = False
    """Print JSON: what was found, in which lines, and the diff."""


def run(argv: Sequence[str]) -> int:
    """Print the diff, or what was asked for instead; 1 if the script is refused.

    Args:
        argv: Words after `patch`.

    Raises:
        PatchError: The script cannot be patched, or libcst is not installed; with --json it is told there.
        SystemExit: The words cannot be read; its code is 2.
    """
    args = parse(Arguments, argv, program="autoprog-diffusion patch")
    if args.write and args.check:
        raise PatchError(args.script, None, "--write changes it and --check does not: give one of them.")
    if importlib.util.find_spec("libcst") is None:
        raise PatchError(args.script, None, 'reading scripts needs libcst: pip install "autoprog-diffusion[patch]".')
    try:
        patched = understand(args)
    except PatchError as error:
        if not args.json:
            raise
        refused = {"script": str(error.path), "patched": False, "line": error.line, "reason": error.reason}
        print(json.dumps(refused, indent=1))
        return REFUSED
    show(args, patched)
    return 0


@dataclass(frozen=True)
class Patched:
    """A script that was understood.

    Attributes:
        training: A `patching.parts.Training`.
        content: The new content of the file.
        notes: What the user may want to know.
    """

    training: Any
    content: bytes
    notes: Sequence[str]


def understand(args: Arguments) -> Patched:
    """Analyse the script, and patch it in memory.

    Args:
        args: The command line.

    Raises:
        PatchError: The script cannot be patched.
    """
    # Only now: libcst is an extra.
    from autoprog_diffusion.patching.analyse import analyse
    from autoprog_diffusion.patching.options import Options, notes_of
    from autoprog_diffusion.patching.source import read_source
    from autoprog_diffusion.patching.transform import patch

    found = analyse(read_source(args.script), model=args.model, steps=args.steps)
    options = Options(
        schedule=args.schedule,
        average=args.average,
        comments=args.comments,
    )
    return Patched(found, patch(found, options), notes_of(found, options))


def show(args: Arguments, patched: Patched) -> None:
    """Print the diff, the verdict or JSON, and write the script if that was asked for.

    Args:
        args: The command line.
        patched: What was understood.
    """
    from autoprog_diffusion.patching.transform import unified_diff
    from autoprog_diffusion.patching.write import write_bytes_atomically

    found = patched.training
    diff = unified_diff(found.source, patched.content)
    if args.write:
        write_bytes_atomically(args.script, found.source.data, patched.content)
    if args.json:
        print(json.dumps({"patched": True, **found.to_dict(), "notes": list(patched.notes), "diff": diff}, indent=1))
        return
    if args.write:
        print(f"{args.script}: growth trains {found.denoiser.name}; GrowthConfig is what to edit.")
    elif args.check:
        print(f"{args.script}: can be patched, growth would train {found.denoiser.name}.")
    else:
        print(diff, end="")
    for note in patched.notes:
        print(f"note: {note}", file=sys.stderr)
