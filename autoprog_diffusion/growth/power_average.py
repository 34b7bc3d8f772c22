"""`PowerAverage`: averages of the weights whose width grows with the run, so that no decay has to be chosen.

Karras et al. 2024 (arXiv 2312.02696), section 3: after t steps the weights of step s count as s^gamma (equations 1 to
3, in `power_function`). With a constant learning rate such an average is at every step about what a decay of the rate
down to that step would have reached. With a rate that decays it adds little.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .averaged_weights import AveragedWeights
from .backends import accelerate as host
from .backends.ranks import gather_object, unwrap
from .errors import ConfigError, GrowthWarning, OrderError
from .power_checks import check_host, check_settings
from .power_function import check_widths, decay, exponent_of, relative_width
from .power_state import PowerState


if TYPE_CHECKING:
    from .scheduler import GrowthScheduler

DEFAULT_WIDTH = relative_width(3.0)
DECAYED = 0.5  # of its highest value: a learning rate below it belongs to a schedule that decays


class PowerAverage(PowerState):
    """Tracks one or several power-function averages of all weights that train in some stage.

    `step` moves them, after every optimizer step and before `growth.step()`. Like Diffusers' `EMAModel` it has
    `store`, `copy_to` and `restore`, so that `HeldOut(average=...)` takes it. Frozen weights go on being averaged,
    with the value that they have. Nothing is communicated: ranks with equal weights have equal averages, and of
    weights that FSDP2 has cut each rank averages its part.

    Args:
        model: Bare, or as `accelerator.prepare` returned it; where FSDP2 cuts it, afterwards.
        growth: Its scheduler, after `growth.prepare`, if there is one. Its stage embedding is averaged as well.
        accelerator: Its checkpoints then hold the averages, in `power_average.pt`, or in the folder `power_average`
            beside it where they are cut. Before `accelerator.load_state`.
        widths: Relative widths sigma_rel: standard deviation of the weighting, over the length of the run. The first
            one is in use. None is that of weights ~ t^3, also for a run of so few steps that a width which is given
            would be refused.
        num_training_steps: Optimizer steps of the run, to check the widths; `growth` knows them.
        device: Where the averages are kept; None for where the parameters are.
        dtype: Type of the averages, float32 or float64.
        freeze_at_average: A block that freezes is frozen at its average of the width in use, not at its last weights.
        begin_anew: A checkpoint without averages begins new ones where it was written, instead of being refused.
        warn_of_decay: Warn once where the learning rate decays.

    Attributes:
        width: The relative width in use: that `copy_to` writes.
        steps: Number of optimizer steps that were averaged.

    Raises:
        ConfigError: A width does not fit the run, the averages would be in half precision, the stage embedding has an
            average of its own (`ema_decay`), or blocks cannot be frozen at their averages.
        OrderError: Nothing trains, `growth.prepare` has not been called, or the accelerator runs FSDP before
            `accelerator.prepare`, FSDP version 1, or DeepSpeed.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = PowerAverage(model, widths=[relative_width(1.0)])
        >>> for value in (1.0, 2.0, 3.0):
        ...     _ = model.weight.data.fill_(value)
        ...     average.step()
        >>> round(average.averages["weight"].item(), 4)  # (1 * 1 + 3 * 2 + 5 * 3) / 9
        2.4444
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        growth: GrowthScheduler | None = None,
        accelerator: Any = None,
        widths: Sequence[float] | None = None,
        num_training_steps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        freeze_at_average: bool = False,
        begin_anew: bool = False,
        warn_of_decay: bool = True,
    ) -> None:
        steps = num_training_steps if growth is None else growth.plan.num_training_steps
        if widths is None:
            widths = (DEFAULT_WIDTH,)
        else:
            check_widths(widths, steps)
        check_settings(growth, dtype, freezes=freeze_at_average)
        self._model = unwrap(model)
        check_host(self._model, accelerator)
        self._growth = growth
        self._accelerator = accelerator
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._freezes = freeze_at_average
        self._begin_anew = begin_anew
        self._tracked = tuple(widths)
        self._weights = AveragedWeights(self._model, growth)
        self._averages: dict[float, dict[str, Tensor]] = {}
        for width in widths:
            self._averages[width] = self._weights.zeros(dtype, self._device)
        self.width = widths[0]
        self.steps = 0
        # What `growth.steps` must be at the next step; None where averages have begun anew in a resumed run.
        self._expected: int | None = None if growth is None else growth.steps
        # Of the learning rate so far; None once it was seen to decay, or where nobody wants to know.
        self._highest_rate: float | None = 0.0 if warn_of_decay else None
        if accelerator is not None:
            accelerator.register_save_state_pre_hook(self._save_in_checkpoint)
            accelerator.register_load_state_pre_hook(self._load_from_checkpoint)

    @property
    def averages(self) -> dict[str, Tensor]:
        """Name -> average of the width in use, or what this process holds of it.

        A stage embedding's is that of its row in use, then of its null row.
        """
        return self._averages[self.width]

    @property
    def widths(self) -> tuple[float, ...]:
        """Relative widths that are there: those that are tracked, and those that were put together."""
        return tuple(self._averages)

    @torch.no_grad()
    def step(self) -> None:
        """Take the weights after an optimizer step into the averages; before `growth.step()`.

        Raises:
            OrderError: Between two micro-batches, after `growth.step()`, not after every optimizer step, or the model
                was sharded meanwhile.
        """
        self._check_order()
        self.steps += 1
        names = []
        values = []
        for value in self._weights.values():
            if self._device is None:
                self._follow(value.name, value.tensor.device)
            old = self.averages[value.name]
            current = value.tensor.to(old.device, self._dtype)
            if value.is_copy or current is not value.tensor:
                # Taken at once, so that one copy is alive at a time.
                self._take([value.name], [current])
            else:
                names.append(value.name)
                values.append(current)
        self._take(names, values)
        if self._freezes:
            self._weights.write(self.averages, self._weights.closing())
        self._watch_rate()

    def use(self, width: float) -> None:
        """Let `copy_to`, and all that goes by it, take another one of `widths`.

        Raises:
            ConfigError: It is not there.
        """
        if width not in self._averages:
            raise ConfigError(
                f"the width {width} is not tracked, {list(self._averages)} are: use one of these, or put it together "
                "from snapshots first, average.reconstruct(width, paths)."
            )
        self.width = width

    def choose(self, loss: Callable[[], float]) -> dict[float, float]:
        """Use the width with the lowest loss from now on.

        Where parameters are sharded all processes must call it, and the mean of their losses counts.

        Args:
            loss: The loss with the width in use, such as `lambda: held_out.evaluate(unet).loss` with this average in
                `held_out`.

        Returns:
            Width -> loss.
        """
        losses = {}
        for width in self._averages:
            self.width = width
            losses[width] = loss()
        if self._weights.are_cut:
            # Parts of different widths make no model.
            seen = gather_object(losses)
            losses = {width: fmean(each[width] for each in seen) for width in losses}
        self.width = min(losses, key=lambda each: losses[each])
        return losses

    def copy_to(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Write the averages into the model, and into the row of its stage embedding; before `growth.fold`.

        Before the first step of the average the weights stay as they are.

        Args:
            parameters: Those of the model that are written; None for all. What never trains stays as it is.

        Raises:
            OrderError: A parameter is not the model's.
        """
        names = self._weights.chosen(parameters)
        if self.steps > 0:
            self._weights.write(self.averages, names)
            self._weights.write_rows(self.averages)

    def store(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Keep the weights, in CPU memory, for `restore`."""
        self._weights.store(self._weights.chosen(parameters))

    def restore(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Write back what `store` has kept, bit for bit; raises `OrderError` where it has kept nothing."""
        self._weights.restore(self._weights.chosen(parameters))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside a `with` block the model holds its averages, also where `frozen_dtype` holds frozen weights small."""
        with nullcontext() if self._growth is None else self._growth.exact_weights():
            self.store()
            try:
                self.copy_to()
                yield
            finally:
                self.restore()

    def _take(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        """Move the averages of all widths towards values on their devices (equation 2)."""
        if not names:
            return
        for width, averages in self._averages.items():
            share = 1 - decay(exponent_of(width), self.steps)
            foreach: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
            foreach([averages[name] for name in names], list(values), share)

    def _follow(self, name: str, device: torch.device) -> None:
        """Bring the averages of a parameter to where it is now."""
        for averages in self._averages.values():
            averages[name] = averages[name].to(device)

    def _check_order(self) -> None:
        """Refuse, with `OrderError`, a step at another place of the loop."""
        if self.steps == 0:
            check_host(self._model, self._accelerator)
            self._weights.check_parts(self.averages)
        if host.accumulates_now(self._accelerator):
            raise OrderError(
                "average.step() was called between two micro-batches: call it after optimizer.step(), inside "
                "`if accelerator.sync_gradients:`."
            )
        if self._growth is None:
            return
        done = self._growth.steps
        if self._expected is not None and done != self._expected:
            raise OrderError(
                f"average.step() came after {done} steps of growth, not {self._expected}: call it once after every "
                "optimizer step, and before growth.step()."
            )
        self._expected = done + 1

    def _watch_rate(self) -> None:
        """Warn once where the learning rate decays."""
        if self._highest_rate is None:
            return
        groups = [group for each in host.prepared_optimizers(self._accelerator) for group in each.param_groups]
        rate = max((float(group["lr"]) for group in groups), default=0.0)
        if rate < DECAYED * self._highest_rate:
            self._highest_rate = None
            warnings.warn(
                f"the learning rate has decayed to {rate:.3g}: to such a schedule an average of the weights adds "
                "little. Train with a constant rate after warm-up (constant_with_warmup), of which the average takes "
                "the place of the decay, or leave the average out.",
                GrowthWarning,
                stacklevel=3,
            )
        else:
            self._highest_rate = max(self._highest_rate, rate)
