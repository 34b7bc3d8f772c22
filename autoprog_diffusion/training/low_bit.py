"""AdamW of torchao with 8-bit, 4-bit or float8 state, and bfloat16 weights that are rounded stochastically."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.data.images import seeded
from autoprog_diffusion.growth.backward_step import only
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.optimizer_offload import unhooked_step


# Name of the flag -> torchao's class.
CLASSES = {"adamw8bit": "AdamW8bit", "adamw4bit": "AdamW4bit", "adamw_fp8": "AdamWFp8"}


def low_bit_adamw(name: str, parameters: Any, *, seed: int | None = None, **settings: Any) -> torch.optim.Optimizer:
    """AdamW whose state takes a quarter (8 bits, float8) or an eighth (4 bits) of the memory.

    With a seed, parameters of type bfloat16 are rounded up or down at random, so that small steps are not lost. The
    draws are a function of the seed, the parameter and its number of steps: the same on every rank, after a resume,
    and in whichever order parameters are stepped. They leave the global generators alone.

    Args:
        name: `adamw8bit`, `adamw4bit` or `adamw_fp8`.
        parameters: What to train, or groups of it, as every torch optimizer takes them.
        seed: Of the stochastic rounding; None rounds to the nearest.
        settings: `lr`, `betas`, `eps` and `weight_decay`.

    Raises:
        ConfigError: torchao is not installed.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
        >>> optimizer = low_bit_adamw("adamw8bit", [weight], seed=0, lr=1e-3)
    """
    kind = _steady(_torchao_class(name))
    return kind(parameters, seed=seed, **settings)


def _torchao_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torchao that a flag names.

    Raises:
        ConfigError: torchao is not installed.
    """
    log = logging.getLogger("torchao")
    level = log.level
    # Where its CUDA libraries do not load, torchao says so in every process; the optimizers need none of them.
    log.setLevel(logging.ERROR)
    try:
        from torchao import optim
    except ImportError as error:
        raise ConfigError(
            f"--optimizer {name} needs torchao: pip install 'autoprog-diffusion[low_precision]', or use "
            "--optimizer adamw or adafactor."
        ) from error
    finally:
        log.setLevel(level)
    return getattr(optim, CLASSES[name])


def _steady(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """A class of torchao whose draws are its own, and which needs no compiler on the CPU."""

    class Steady(kind):
        """An optimizer of torchao."""

        def __init__(self, parameters: Any, *, seed: int | None, **settings: Any) -> None:
            self._seed = seed
            self._numbers: dict[nn.Parameter, int] = {}
            super().__init__(parameters, bf16_stochastic_round=seed is not None, **settings)  # type: ignore[call-arg]

        def add_param_group(self, param_group: dict[str, Any]) -> None:
            super().add_param_group(param_group)
            for parameter in self.param_groups[-1]["params"]:
                self._numbers[parameter] = len(self._numbers)

        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                raise TypeError("step takes no closure: call loss.backward() before it.")
            step = unhooked_step(kind)
            with _compiled_where_it_pays(self._numbers):
                if self._seed is None:
                    step(self)
                    return
                for place, group in enumerate(self.param_groups):
                    for parameter in group["params"]:
                        if parameter.grad is not None:
                            with only(self, {place: [parameter]}), self._draws_of(parameter):
                                step(self)

        def _draws_of(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
            if parameter.dtype != torch.bfloat16 or self._seed is None:
                return nullcontext()
            done = int(self.state[parameter]["step"]) if parameter in self.state else 0
            numbers = seeded(self._seed, self._numbers[parameter], done)
            return _seeded_globally(numbers.initial_seed(), parameter.device)

    return Steady


@contextmanager
def _seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators that begin at a seed, and are what they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


def _compiled_where_it_pays(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Let torchao compile its step, a kernel for every shape, on a GPU that has Triton, and nowhere else."""
    devices = {parameter.device.type for parameter in parameters}
    if devices == {"cuda"} and find_spec("triton") is not None:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
