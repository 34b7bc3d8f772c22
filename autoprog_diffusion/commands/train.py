"""`autoprog-diffusion train RECIPE`: the recipes, from an installed package."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from autoprog_diffusion.command_line import MODULE, NAME
from autoprog_diffusion.growth.errors import ConfigError


USAGE = 2


@dataclass(frozen=True)
class Entry:
    """A recipe, as the command names it.

    Attributes:
        script: File of the repository.
        module: Of the installed package.
        kind: Class of the recipe in it; None for one that has subcommands of its own.
        text: One line for --help.
    """

    script: str
    module: str
    kind: str | None
    text: str

    def load(self) -> ModuleType:
        """The recipe's module, with all that it needs."""
        return importlib.import_module(f"{MODULE}.{self.module}")


RECIPES: dict[str, Entry] = {
    "sd": Entry(
        "recipes/finetune_sd.py",
        module="recipes.finetune_sd",
        kind="FinetuneSD",
        text="Stable Diffusion 1.x and 2.x, in full",
    ),
    "sdxl": Entry(
        "recipes/finetune_sdxl.py",
        module="recipes.finetune_sdxl",
        kind="FinetuneSDXL",
        text="SDXL, in full",
    ),
    "dit": Entry(
        "recipes/finetune_dit.py",
        module="recipes.finetune_dit",
        kind="FinetuneDiT",
        text="class-conditional DiT, in full",
    ),
    "flow": Entry(
        "recipes/finetune_flow.py",
        module="recipes.finetune_flow",
        kind="FinetuneFlow",
        text="SD3, Flux, Qwen-Image and other transformers, in full",
    ),
    "lora": Entry(
        "recipes/finetune_lora.py",
        module="recipes.finetune_lora",
        kind="FinetuneLora",
        text="a LoRA of a text-to-image model",
    ),
    "dreambooth": Entry(
        "recipes/dreambooth.py",
        module="recipes.dreambooth",
        kind="FinetuneSubject",
        text="a subject from a few pictures",
    ),
    "vit": Entry(
        "vit/pretrain.py",
        module="vit.pretrain",
        kind="Pretraining",
        text="a vision transformer from scratch, growing",
    ),
    "vit-finetune": Entry(
        "vit/finetune.py",
        module="vit.finetune",
        kind="Finetuning",
        text="a pretrained vision transformer",
    ),
    "asvit": Entry(
        "vit/asvit.py",
        module="vit.asvit.commands",
        kind=None,
        text="search, scale or train an architecture without training it first",
    ),
}


def run(argv: Sequence[str]) -> int:
    """Train; what the recipe leaves is in its output folder.

    Args:
        argv: Words after `train`: the recipe and its flags, or flags with a `--config` that names the recipe.

    Returns:
        0, or 2 where no recipe is named.

    Raises:
        ConfigError: There is no such recipe.
        GrowthError: Something does not fit.
        SystemExit: The recipe's own exit code; 128 and the number of a signal that ended the run.
    """
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else USAGE
    name = words.pop(0) if not words[0].startswith("-") else recipe_of(words)
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        print(f"error: there is no recipe {name!r}: use one of {', '.join(RECIPES)}.{meant}", file=sys.stderr)
        return USAGE
    start(name, words)
    return 0


def start(name: str, words: Sequence[str]) -> None:
    """Run a recipe in this process.

    Args:
        name: Of the recipe.
        words: Its flags.

    Raises:
        SystemExit: The run failed, or was stopped by a signal.
    """
    entry = RECIPES[name]
    module = entry.load()
    if entry.kind is None:
        module.main(list(words), f"As-ViT: {entry.text}.")
        return
    from autoprog_diffusion.training.run import main

    tell_of_gpus(name)
    recipe: Any = getattr(module, entry.kind)()
    main(recipe, words, described(name, module.__doc__ or ""))


def described(name: str, text: str) -> str:
    """The description of a script, with this command in place of the script's."""
    script = RECIPES[name].script
    for launcher in ("accelerate launch", "python"):
        text = text.replace(f"{launcher} {script}", f"{NAME} train {name}")
    return text


def recipe_of(words: Sequence[str]) -> str:
    """The recipe that the file of `--config` names.

    Raises:
        ConfigError: There is no file, or no recipe in it.
    """
    from autoprog_diffusion.training.arguments import take_flag
    from autoprog_diffusion.training.run_file import read_run_file

    file, _ = take_flag(words, "config")
    if file is None:
        raise ConfigError(f"no recipe is named: use `{NAME} train RECIPE ...` with one of {', '.join(RECIPES)}.")
    recipe = read_run_file(Path(file)).recipe
    if recipe is None:
        raise ConfigError(f"--config {file} names no recipe: add a line such as `recipe: sd`, or name it before.")
    return recipe


def tell_of_gpus(name: str) -> None:
    """Say how to use all GPUs, where this one process leaves some idle."""
    import torch

    count = torch.cuda.device_count()
    if count > 1 and "LOCAL_RANK" not in os.environ:
        print(
            f"one of {count} GPUs is used; all of them: accelerate launch --num_processes {count} -m {MODULE} train "
            f"{name} ...",
            file=sys.stderr,
        )


def overview() -> str:
    """The help text: the recipes, and how they are launched."""
    width = max(map(len, RECIPES))
    lines = [f"usage: {NAME} train RECIPE [FLAGS]", f"       {NAME} train --config run.yaml [FLAGS]", ""]
    lines += [f"  {name:<{width}}  {entry.text}" for name, entry in RECIPES.items()]
    lines += [
        "",
        f"`{NAME} train RECIPE --help` lists the flags of one. Without a model and data each trains a small default",
        "that comes with the package, on a CPU, in a few minutes. Several processes:",
        "",
        f"  accelerate launch --num_processes 2 -m {MODULE} train sd --output_dir out",
    ]
    return "\n".join(lines)
