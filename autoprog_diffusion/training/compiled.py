"""`--compile`: the blocks of a model are compiled, one graph for a kind of block, while the rest stays as it is."""

from __future__ import annotations

import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.frozen_front import called_modules
from autoprog_diffusion.growth.units import Layout

from .sharded import is_sharding


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .recipe_arguments import Arguments

BACKEND = "inductor"
# Graphs of one class: its blocks may have several widths, and train, be frozen, or run without gradient.
LIMIT = 64


class CompiledBlocks:
    """The blocks of a model, whose forward passes are compiled where they train.

    Only the code inside of a block is compiled. Hooks on blocks, those of growth among them, run as ever, and so does
    all that is no training step: evaluations, pictures, the count of FLOPs. Nothing is wrapped: names of parameters
    are what they were, and `stop` leaves the model as it was.

    A block that trains, one that is frozen behind one that trains, and one of the frozen front, which runs without
    gradient, are three graphs at most for every kind of block. A stage that freezes compiles those of them that
    were not there, however many blocks it freezes.

    Args:
        model: Bare.
        layout: Its units.
        varied: Whether batches have several sizes: the second size makes graphs that take any.

    Raises:
        ConfigError: The model has no blocks that repeat.
    """

    def __init__(self, model: nn.Module, layout: Layout, *, varied: bool = False) -> None:
        # Hooks inside of blocks change with the stage: a graph of an earlier stage must not go on being used.
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # type: ignore[attr-defined]
        torch._dynamo.config.recompile_limit = LIMIT  # type: ignore[attr-defined]
        self._active = False
        self._dynamic = None if varied else False
        self._modules = repeated_blocks(model, layout)
        self._begun = graphs()
        self.kinds = Counter(type(module).__name__ for module in self._modules)
        self.by_stage: dict[int, int] = {}
        for module in self._modules:
            module.forward = self._either(module.forward)

    @contextmanager
    def training(self, stage: int) -> Iterator[None]:
        """Inside a `with` block, which is a training step, compiled code runs.

        Args:
            stage: That trains, for the summary.
        """
        before = graphs()
        self._active = True
        try:
            yield
        finally:
            self._active = False
            self.by_stage[stage] = self.by_stage.get(stage, 0) + graphs() - before

    def stop(self) -> None:
        """Give the blocks their own forward passes back."""
        for module in self._modules:
            vars(module).pop("forward", None)
        self._modules = []

    def __str__(self) -> str:
        blocks = ", ".join(f"{count} {name}" for name, count in self.kinds.items())
        counts = ", ".join(f"{count} in stage {stage + 1}" for stage, count in self.by_stage.items() if count)
        total = sum(self.by_stage.values())
        return f"compiled {blocks}: {total} graphs ({counts or 'none'})"

    def _either(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward pass that is compiled in training steps."""
        compiled = torch.compile(forward, dynamic=self._dynamic, backend=BACKEND)

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            return compiled(*args, **kwargs) if self._active else forward(*args, **kwargs)

        return run


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def repeated_blocks(model: nn.Module, layout: Layout) -> list[nn.Module]:
    """Modules of the classes that Diffusers says repeat in a model; without a word of it, the blocks that grow.

    Raises:
        ConfigError: No class repeats.
    """
    names: Sequence[str] = getattr(model, "_repeated_blocks", None) or ()
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        for block in layout.blocks:
            found.extend(called_modules(model, block.modules))
    counts = Counter(type(module) for module in found)
    repeated = [module for module in found if counts[type(module)] > 1]
    if not repeated:
        raise ConfigError(
            f"--compile compiles the blocks that repeat, and {type(model).__name__} has none: do without --compile."
        )
    return repeated


def check_compile(args: Arguments, accelerator: Accelerator) -> None:
    """Refuse `--compile` where it does not work.

    Raises:
        ConfigError: The message names the other flag, or what is missing.
    """
    for words, is_given in _conflicts(args, accelerator).items():
        if is_given:
            raise ConfigError(f"--compile does not go with {words}. Remove one of the two.")
    if accelerator.device.type == "cuda":
        if find_spec("triton") is None:
            raise ConfigError("--compile needs Triton on a GPU: pip install triton, or do without --compile.")
        return
    compiler = os.environ.get("CXX", "g++")
    if BACKEND == "inductor" and shutil.which(compiler) is None:
        raise ConfigError(
            f"--compile needs a C++ compiler on the CPU, and there is no {compiler}: install g++, or name another one "
            "in the environment variable CXX, or do without --compile."
        )


def _conflicts(args: Arguments, accelerator: Accelerator) -> dict[str, bool]:
    """What compiled blocks cannot do -> whether it is asked for."""
    growth = args.growth
    grows = growth.growth != "off"
    whole = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("", "no")
    return {
        f"--search {growth.search}, which replays passes with hooks inside of blocks": grows
        and growth.search != "none",
        f"--frozen_dtype {growth.frozen_dtype}, which changes layers inside of blocks": grows
        and growth.frozen_dtype is not None,
        "--checkpointing auto, which measures what blocks save": growth.checkpointing == "auto",
        "--step_in_backward, where it was never tried": args.train.step_in_backward,
        "FSDP, where it was never tried": is_sharding(accelerator),
        "the dynamo backend of Accelerate's configuration, which compiles the whole model": whole,
    }
