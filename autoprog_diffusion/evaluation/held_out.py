"""`HeldOut`: the loss on held-out images, with the same images, noise and timesteps in every evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backends.fsdp2 import is_sharded, reshard
from autoprog_diffusion.growth.backends.ranks import unwrap

from .batches import batch_size, on, one_sample
from .draws import Draw, mixed, stratified_times
from .errors import EvaluationError
from .quiet import evaluating, randomness_kept, seed_all
from .result import Evaluation


Loss = Callable[[Any, Any, Draw], Tensor]


class HeldOut:
    """Evaluates a model on held-out images.

    Two evaluations see the same images with the same noise at the same timesteps, on any number of processes, so that
    their difference is that of the models. An evaluation changes nothing: neither random numbers nor modes.

    Args:
        loss: `loss(model, batch, draw)` -> (N,) losses of the samples, or their mean. It takes its timesteps from
            `draw.timesteps(count)` or `draw.times`, and its noise from `draw.noise(latents)`. What it draws from the
            global generators is the same each time as well. A mean is asked for one sample at a time.
        batches: Held-out batches, kept as they are now: a list, or a data loader that `accelerator.prepare` has not
            divided among the processes.
        accelerator: Of the loop; its processes share the work.
        average: An `EMAModel` of all of the model's parameters, or anything with `store`, `copy_to` and `restore`: its
            weights are evaluated.
        growth: The loop's `GrowthScheduler`, if there is one: what would be saved is evaluated.
        draws: How often every image is taken, with other noise at other timesteps.
        ranges: Number of even ranges of timesteps that the loss is also given for.
        seed: Of noise and timesteps.

    Raises:
        EvaluationError: There is no batch, a batch holds no tensor, or a number is too small.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> held_out = HeldOut(lambda model, x, draw: (model(x) - draw.noise(x)).square().mean(1), [torch.ones(3, 2)])
        >>> held_out.evaluate(model).loss == held_out.evaluate(model).loss
        True
    """

    def __init__(
        self,
        loss: Loss,
        batches: Iterable[Any],
        *,
        accelerator: Any = None,
        average: Any = None,
        growth: Any = None,
        draws: int = 4,
        ranges: int = 4,
        seed: int = 0,
    ) -> None:
        for name, value in (("draws", draws), ("ranges", ranges)):
            if value < 1:
                raise EvaluationError(f"{name}={value} is not allowed: use a whole number of at least 1.")
        self._loss = loss
        self._accelerator = accelerator
        self._average = average
        self._growth = growth
        self._ranges = ranges
        self._seed = seed
        self._alone = False  # whether the loss gives means, and is asked for single samples
        self._batches = _taken(batches, seed)
        self._sizes = [batch_size(batch) for batch in self._batches]
        self.draws = draws
        self.images = sum(self._sizes)
        self._times = stratified_times(self.images, draws, seed)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate a model; all processes of the accelerator must take part, and get the same result.

        Args:
            model: Bare, or as `accelerator.prepare` or `torch.compile` wrapped it.

        Raises:
            EvaluationError: The loss is not of the shape that it should be.
        """
        start = time.perf_counter()
        bare = unwrap(model)
        # A picture may have left parameters gathered, in which an average would be lost.
        reshard(bare)
        device = _device_of(bare)
        with ExitStack() as stack:
            stack.enter_context(randomness_kept(device))
            stack.enter_context(evaluating(bare))
            stack.enter_context(self._weights(bare))
            if self._accelerator is not None:
                stack.enter_context(self._accelerator.autocast())
            losses = self._losses(bare, device)
        reshard(bare)
        seconds = time.perf_counter() - start
        return Evaluation(losses, self._times, self._ranges, seconds)

    def _losses(self, model: nn.Module, device: torch.device) -> Tensor:
        """(draws, images) losses, of which every process computes its part."""
        found = torch.zeros(self.draws, self.images, device=device)
        for part, calls in self._mine(sharded=is_sharded(model)):
            draw, number = divmod(part, len(self._batches))
            start = sum(self._sizes[:number])
            end = start + self._sizes[number]
            losses = self._call(model, number, draw, device)
            # A part that another process counts is computed to take part in the gathering of its weights.
            if calls:
                found[draw, start:end] = losses.float()
        if self._accelerator is not None and self._accelerator.num_processes > 1:
            found = self._accelerator.reduce(found, reduction="sum")
        return found.cpu().double()

    def _mine(self, *, sharded: bool) -> Iterator[tuple[int, bool]]:
        """Parts (a batch in a draw) that this process computes, and whether it counts them."""
        count = self.draws * len(self._batches)
        accelerator = self._accelerator
        processes = 1 if accelerator is None else accelerator.num_processes
        first = 0 if accelerator is None else accelerator.process_index
        last = -(-count // processes) * processes if sharded else count
        for part in range(first, last, processes):
            yield min(part, count - 1), part < count

    def _call(self, model: nn.Module, number: int, draw: int, device: torch.device) -> Tensor:
        """(N,) losses of one batch in one draw."""
        batch = on(self._batches[number], device)
        size = self._sizes[number]
        drawn = self._draw(number, draw, device)
        seed_all(mixed(self._seed, number, draw), device)
        if not self._alone:
            losses = self._loss(model, batch, drawn)
            if losses.dim() == 1 and len(losses) == size:
                return losses
            if losses.numel() != 1:
                raise EvaluationError(
                    f"the held-out loss of a batch of {size} has the shape {tuple(losses.shape)}: return one number a "
                    f"sample, ({size},), or their mean."
                )
            if size == 1:
                return losses.reshape(1)
            self._alone = True
        single = []
        for index in range(size):
            seed_all(mixed(self._seed, number, draw, index), device)
            single.append(self._loss(model, one_sample(batch, index), drawn.sample(index)).reshape(()))
        return torch.stack(single)

    def _draw(self, number: int, draw: int, device: torch.device) -> Draw:
        start = sum(self._sizes[:number])
        keys = []
        for image in range(start, start + self._sizes[number]):
            keys.append((self._seed, image, draw))
        times = self._times[draw, start : start + self._sizes[number]]
        return Draw(times, tuple(keys), device)

    @contextmanager
    def _weights(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model holds the weights that would be saved."""
        growth = self._growth
        with ExitStack() as stack:
            if self._average is not None:
                # Averages are written into all parameters, also into those that are held small.
                stack.enter_context(nullcontext() if growth is None else growth.exact_weights())
                stack.enter_context(averaged(self._average, list(model.parameters())))
            stack.enter_context(nullcontext() if growth is None else growth.folded(model))
            yield


@contextmanager
def averaged(average: Any, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters hold their averages.

    Args:
        average: An `EMAModel`, or anything with `store`, `copy_to` and `restore`.
        parameters: Those that it was built from.

    Raises:
        EvaluationError: It was built from others.
    """
    known = getattr(average, "shadow_params", parameters)
    if len(known) != len(parameters):
        raise EvaluationError(
            f"the average holds {len(known)} tensors, the model {len(parameters)}: build it from all of the model's "
            "parameters, or put its weights in place around `evaluate` yourself, and leave average= out."
        )
    average.store(parameters)
    try:
        average.copy_to(parameters)
        yield
    finally:
        average.restore(parameters)


def _taken(batches: Iterable[Any], seed: int) -> list[Any]:
    """The batches as a list, the same on every process.

    Raises:
        EvaluationError: There is none.
    """
    cpu = torch.device("cpu")
    with randomness_kept(cpu):
        seed_all(mixed(seed), cpu)
        taken = list(batches)
    if not taken:
        raise EvaluationError("there is no held-out batch: give at least one image, or leave the evaluation out.")
    return taken


def _device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter; the CPU without one."""
    for parameter in model.parameters():
        return parameter.device
    return torch.device("cpu")
