"""`autoprog-diffusion completion SHELL`: completion of commands, recipes, flags and their values in a shell."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from autoprog_diffusion.command_line import MODULE, NAME, Flag, flags_of, parse

from .train import RECIPES


FUNCTION = "_autoprog_diffusion"
CONFIG = Flag("config")


@dataclass(frozen=True)
class Arguments:
    """Print a script that lets a shell complete this program.

    It takes some seconds, so write it to a file once: `autoprog-diffusion completion bash > ~/.autoprog-diffusion`,
    and `source ~/.autoprog-diffusion` in ~/.bashrc or ~/.zshrc. fish reads
    ~/.config/fish/completions/autoprog-diffusion.fish.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """The shell."""


def run(argv: Sequence[str]) -> int:
    """Print the script.

    Args:
        argv: Words after `completion`.

    Returns:
        0, the exit code.

    Raises:
        SystemExit: The words cannot be read; its code is 2.
    """
    args = parse(Arguments, argv, program=f"{NAME} completion")
    from .main import COMMANDS

    flags = all_flags(COMMANDS)
    if args.shell == "fish":
        print(fish(COMMANDS, flags))
    else:
        begin = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
        print((begin if args.shell == "zsh" else "") + bash(COMMANDS, flags))
    return 0


def all_flags(commands: Iterable[str]) -> dict[str, list[Flag]]:
    """Command, or `train` and a recipe -> its flags.

    Args:
        commands: Names of the subcommands.
    """
    found: dict[str, list[Flag]] = {}
    for name in commands:
        if name != "train":
            module: Any = importlib.import_module(f"{MODULE}.commands.{name}")
            found[name] = list(flags_of(module.Arguments).values())
    for name, entry in RECIPES.items():
        if entry.kind is not None:
            recipe: Any = getattr(entry.load(), entry.kind)()
            found[f"train {name}"] = [CONFIG, *recipe.flags().values()]
    return found


def options(flags: Iterable[Flag]) -> list[str]:
    """The words that flags are given by."""
    words = ["--help"]
    for flag in flags:
        words.append(f"--{flag.name}")
        if flag.switch:
            words.append(f"--no-{flag.name}")
    return words


def bash(commands: Mapping[str, str], flags: Mapping[str, Sequence[Flag]]) -> str:
    """The script for bash; where it has nothing to offer, bash completes names of files.

    Args:
        commands: Name of a subcommand -> its line of help.
        flags: As `all_flags`.
    """
    cases = []
    for key, known in flags.items():
        cases += [f"    '{key}')", f"      flags='{' '.join(options(known))}'", '      case "$before" in']
        for flag in known:
            if flag.choices:
                cases.append(f"        --{flag.name}) values='{' '.join(flag.choices)}' ;;")
        cases += ["      esac ;;"]
    lines = [
        f"{FUNCTION}() {{",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" flags="" values=""',
        '  local key="${COMP_WORDS[1]}"',
        '  [ "$key" = train ] && [ "$COMP_CWORD" -gt 2 ] && key="train ${COMP_WORDS[2]}"',
        f'  if [ "$COMP_CWORD" -eq 1 ]; then values="{" ".join(commands)} --help --version"',
        f'  elif [ "$key" = train ]; then values="{" ".join(RECIPES)} --config --help"',
        '  else case "$key" in',
        *cases,
        "  esac; fi",
        '  if [ -z "$values" ] && [ "${word#-}" != "$word" ]; then values="$flags"; fi',
        '  COMPREPLY=($(compgen -W "$values" -- "$word"))',
        "}",
        f"complete -o default -F {FUNCTION} {NAME}",
    ]
    return "\n".join(lines)


def fish(commands: Mapping[str, str], flags: Mapping[str, Sequence[Flag]]) -> str:
    """The script for fish; the arguments are those of `bash`."""
    names = " ".join(commands)
    begin = f"complete -c {NAME}"
    lines = [f"{begin} -n 'not __fish_seen_subcommand_from {names}' -f -a '{names}'"]
    recipes = " ".join(RECIPES)
    only_train = f"__fish_seen_subcommand_from train; and not __fish_seen_subcommand_from {recipes}"
    lines.append(f"{begin} -n '{only_train}' -f -a '{recipes}'")
    for key, known in flags.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in key.split())
        for flag in known:
            values = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else ""
            kind = "" if flag.switch else (values or " -r")
            lines.append(f"{begin} -n '{seen}' -l {flag.name}{kind}")
            if flag.switch:
                lines.append(f"{begin} -n '{seen}' -l no-{flag.name}")
    return "\n".join(lines)
