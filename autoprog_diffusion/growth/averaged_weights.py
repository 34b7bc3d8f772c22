"""`AveragedWeights`: the weights that an average is taken of, and the places that it is written to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backends.fsdp2 import gathered, is_sharded_tensor, local_part, part_of, reshard
from .backends.ranks import rank
from .errors import OrderError, StateError
from .stage import TABLE
from .units import trainable_names


if TYPE_CHECKING:
    from .scheduler import GrowthScheduler


@dataclass(frozen=True)
class Value:
    """One averaged tensor as it is now.

    Attributes:
        name: Of the parameter.
        tensor: Its exact value, or of a sharded parameter this process's part.
        is_copy: Whether it takes memory of its own.
    """

    name: str
    tensor: Tensor
    is_copy: bool


class AveragedWeights:
    """The parameters of a model that train in some stage, and the rows of its stage embedding that are in use.

    The stage embedding counts as what it adds to the biases: the row of the stage that trains, whichever it is, and
    the null row. With them the average of the model with the embedding folded in is that of the models that trained.

    Of parameters that FSDP2 has cut, each process averages what it holds. Tensors of a state are then cut as well
    (DTensors).

    Args:
        model: Bare.
        growth: Its scheduler, if there is one.

    Raises:
        OrderError: Nothing trains.
    """

    def __init__(self, model: nn.Module, growth: GrowthScheduler | None) -> None:
        self._model = model
        self._growth = growth
        self._stored: dict[str, Tensor] = {}
        trained = None if growth is None else growth.layout.names
        self._names = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad if trained is None else name in trained:
                self._names.append(name)
        if not self._names:
            raise OrderError(
                "no parameter of the model trains, so there is nothing to average: build the average after adapters "
                "were added and before requires_grad is switched off."
            )

    def zeros(self, dtype: torch.dtype, device: torch.device | None) -> dict[str, Tensor]:
        """Name -> zeros of the shape of every averaged tensor, or of what this process holds of it.

        Args:
            dtype: Of the zeros.
            device: Of the zeros; None for that of the parameter.
        """
        parameters = self._parameters()
        found = {}
        for name in self._names:
            parameter = local_part(parameters[name])
            found[name] = torch.zeros(parameter.shape, dtype=dtype, device=device or parameter.device)
        rows = self._rows()
        if rows is not None:
            found[TABLE] = torch.zeros(rows.shape, dtype=dtype, device=device or rows.device)
        return found

    def values(self) -> Iterator[Value]:
        """Every averaged tensor as it is now, one after the other; without gradient."""
        parameters = self._parameters()
        for name in self._names:
            parameter = parameters[name]
            if is_sharded_tensor(parameter):
                # Growth holds none of these small.
                yield Value(name, local_part(parameter), is_copy=False)
                continue
            exact = parameter.detach() if self._growth is None else self._growth.exact(parameter)
            yield Value(name, exact, exact.data_ptr() != parameter.data_ptr())
        rows = self._rows()
        if rows is not None:
            yield Value(TABLE, rows, True)

    def closing(self) -> set[str]:
        """Names of the parameters that train now, and not after the next `growth.step()`."""
        if self._growth is None:
            return set()
        plan = self._growth.plan
        now = plan.stages[self._growth.stage].blocks
        after = plan.stages[plan.stage_at(self._growth.steps + 1)].blocks
        layout = self._growth.layout
        return trainable_names(layout, now) - trainable_names(layout, after)

    @torch.no_grad()
    def write(self, averages: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Copy averages over parameters of the model.

        Args:
            averages: Name -> tensor, or what this process holds of it.
            names: Of those that are written.
        """
        parameters = self._parameters()
        for name in names:
            local_part(parameters[name]).copy_(averages[name])

    @torch.no_grad()
    def write_rows(self, averages: Mapping[str, Tensor]) -> None:
        """Copy the average of the stage embedding over the row that is in use now, and over the null row."""
        table = self._table
        if table is not None and self._growth is not None:
            table[self._growth.stage] = averages[TABLE][0].to(table.device)
            table[self._growth.config.plan_stages :] = averages[TABLE][1:].to(table.device)

    def chosen(self, parameters: Iterable[nn.Parameter] | None) -> list[str]:
        """Names of those of some parameters of the model that are averaged.

        Args:
            parameters: Some of the model's; None for all.

        Raises:
            OrderError: One is not the model's.
        """
        if parameters is None:
            return self._names
        # After a forward pass FSDP2 shows some parameters whole, as other objects.
        known = {parameter: name for name, parameter in self._model.named_parameters()}
        known |= {parameter: name for name, parameter in self._parameters().items()}
        given = list(parameters)
        strangers = [parameter for parameter in given if parameter not in known]
        if strangers:
            raise OrderError(
                f"{len(strangers)} of {len(given)} parameters are not those of the averaged "
                f"{type(self._model).__name__}, the first one of the shape {tuple(strangers[0].shape)}: pass those of "
                "the model that the average was built with, not of a copy."
            )
        names = {known[parameter] for parameter in given}
        return [name for name in self._names if name in names]

    def store(self, names: Iterable[str]) -> None:
        """Keep weights and the stage embedding in CPU memory."""
        parameters = self._parameters()
        self._stored = {name: local_part(parameters[name].detach()).cpu().clone() for name in names}
        if self._table is not None:
            self._stored[TABLE] = self._table.detach().cpu().clone()

    @torch.no_grad()
    def restore(self, names: Iterable[str]) -> None:
        """Write back what was kept, bit for bit, and forget it.

        Raises:
            OrderError: Nothing was.
        """
        wanted = set(names)
        if not self._stored or not wanted <= self._stored.keys():
            raise OrderError("restore has nothing to write back: call average.store(parameters) before copy_to.")
        self.write(self._stored, wanted)
        if self._table is not None:
            self._table.copy_(self._stored[TABLE])
        self._stored = {}

    @property
    def are_cut(self) -> bool:
        """Whether processes hold parts of the parameters."""
        return any(is_sharded_tensor(parameter) for parameter in self._parameters().values())

    def check_parts(self, averages: Mapping[str, Tensor]) -> None:
        """Refuse averages of weights that were cut after these were built.

        Raises:
            OrderError: They were.
        """
        parameters = self._parameters()
        for name in self._names:
            parameter = parameters[name]
            if is_sharded_tensor(parameter) and local_part(parameter).shape != averages[name].shape:
                raise OrderError(
                    f"{name} was sharded after its average was built: build the average after accelerator.prepare (or "
                    "fully_shard), from the model that it returned."
                )

    def room(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Name -> empty tensor in CPU memory for every averaged one, cut as its parameter is.

        Args:
            dtype: Of the tensors.
        """
        parameters = self._parameters()
        found = {}
        for name in self._names:
            like = parameters[name].detach()
            found[name] = torch.empty_like(like, dtype=dtype, device="cpu", memory_format=torch.contiguous_format)
        rows = self._rows()
        if rows is not None:
            found[TABLE] = torch.empty(rows.shape, dtype=dtype)
        return found

    def parts(self, averages: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name and what this process holds, for every tensor of a state, one after the other.

        Args:
            averages: Name -> tensor, whole or cut as the parameter is.

        Raises:
            StateError: One is cut in another way.
        """
        parameters = self._parameters()
        for name, tensor in averages.items():
            parameter: Any = parameters.get(name)  # none of the stage embedding
            if not is_sharded_tensor(tensor):
                yield name, part_of(tensor, parameter)
                continue
            cut: Any = tensor
            if not is_sharded_tensor(parameter) or cut.placements != parameter.placements:
                raise StateError(
                    f"the average of {name} is cut between processes in another way than this model: read it into "
                    "average.state_dict() by torch.distributed.checkpoint, or load a file that average.save wrote."
                )
            yield name, local_part(tensor)

    def whole(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Averages gathered in the CPU memory of the first process, others get none; all must call it.

        Args:
            averages: Name -> tensor, or what this process holds of it.
        """
        parameters = self._parameters()
        found = {}
        for name, average in averages.items():
            tensor = average if name == TABLE else gathered(parameters[name], average)
            if rank() == 0:
                found[name] = tensor.cpu()
        return found

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters by name, those that are sharded as shards."""
        reshard(self._model)
        return dict(self._model.named_parameters())

    @property
    def _table(self) -> nn.Parameter | None:
        embedding = None if self._growth is None else self._growth.stage_embedding
        return None if embedding is None else embedding.table

    def _rows(self) -> Tensor | None:
        """A copy of the row of the stage embedding that is in use and of its null row, (1 or 2, D)."""
        if self._table is None or self._growth is None:
            return None
        table = self._table.detach()
        stage = self._growth.stage
        return torch.cat([table[stage : stage + 1], table[self._growth.config.plan_stages :]])
