"""The profile of a model: a few traced steps and the sizes of its parameters, from which all plans are computed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.adapter import find_adapter
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.growth.tape import Tape
from autoprog_diffusion.growth.units import Layout, block_sizes, set_trainable

from .device import without_memory
from .forked import Forked
from .inputs import make_inputs
from .models import ModelSource
from .shapes import Shape, default_side
from .sizes import ParameterSize, buffer_bytes, parameter_sizes
from .trace import Trace, Traced


Route = Callable[..., Callable[[], None]]
RANK = 16


@dataclass(frozen=True)
class Profile:
    """What a step of a model takes, unit by unit.

    Attributes:
        source: The model.
        shape: Of one image.
        names: Of the growable blocks, in forward order.
        block_sizes: Number of parameters of every block.
        sizes: The parameters of every unit: the inputs, the blocks, the outputs.
        buffers: Bytes of the model's buffers.
        inputs: Bytes of the inputs of one image.
        full: A step of one image that trains everything.
        live: A step of one image whose blocks are frozen, and carry the gradient through.
        lora: A step of one image that trains adapters, and their parameters; None where the class takes none.
        can_recompute: Whether blocks can be computed again.
        preset: Stages that the recipes give the model by default.
        stage_flops: FLOPs of a step of every stage that was asked for.
    """

    source: ModelSource
    shape: Shape
    names: tuple[str, ...]
    block_sizes: tuple[int, ...]
    sizes: list[list[ParameterSize]]
    buffers: int
    inputs: int
    full: Trace
    live: Trace
    lora: tuple[Trace, list[ParameterSize]] | None
    can_recompute: bool
    preset: GrowthConfig
    stage_flops: tuple[int, ...] = ()
    _sums: dict[Any, float] = field(default_factory=dict, repr=False, compare=False)

    def unit_sum(self, unit: int, key: Any, number: Callable[[ParameterSize], float]) -> float:
        """A number summed over the parameters of a unit, once for every key.

        Args:
            unit: Index of the unit.
            key: What is summed.
            number: Of one parameter.
        """
        place = (unit, key)
        if place not in self._sums:
            self._sums[place] = sum(map(number, self.sizes[unit]))
        return self._sums[place]

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(size.numel for unit in self.sizes for size in unit)

    @property
    def is_unet(self) -> bool:
        """Whether results of early blocks wait for late ones."""
        return self.source.cls.startswith("UNet")


class Builder:
    """Builds a model without memory, and follows its steps; inside of a `with without_memory()` block.

    Args:
        source: The model.
        shape: Of one image; the model's own by default.
        device: The device without memory.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """

    def __init__(self, source: ModelSource, shape: Shape, device: torch.device, *, autocast: bool = True) -> None:
        self.source = source
        self.shape = shape
        self._device = device
        with device:
            self.model: Any = source.build().train()
        adapter = find_adapter(self.model)
        self.layout: Layout = adapter.layout(self.model)
        self.route = usable_route(self.model, adapter.checkpointing)
        self._traced = Traced(
            self.model,
            self.layout,
            self.route,
            device.type,
            autocast=autocast,
        )
        self._adapter = adapter
        self._embedding: tuple[Tensor, ...] = ()

    def full(self, tape: Tape | None = None) -> Trace:
        """A step of one image that trains everything.

        Args:
            tape: Keeps the operations of its forward pass.
        """
        set_trainable(self.model, self.layout.names)
        return self._traced.step(self.inputs(1), tape, self._embedding)

    def record(self, tape: Tape, batch: int) -> None:
        """A forward pass.

        Args:
            tape: Keeps its operations.
            batch: Images.
        """
        set_trainable(self.model, self.layout.names)
        self._traced.record(self.inputs(batch), tape, self._embedding)

    def live(self) -> Trace:
        """A step whose blocks are frozen, and carry the gradient through."""
        set_trainable(
            self.model,
            {*self.layout.inputs.parameters, *self.layout.outputs.parameters},
        )
        return self._traced.step(self.inputs(1))

    def embed_stages(self, config: GrowthConfig) -> None:
        """Attach a stage embedding, as a run does; it carries a gradient through every block that is not in front.

        Args:
            config: Of the run.
        """
        if config.stage_embedding is not False:
            with self._device:
                embedding: Any = self._adapter.stage_embedding(self.model, config)
                if embedding is not None:
                    embedding.attach(self.model)
                    embedding.enter(0)
                    self._embedding = tuple(embedding.parameters())

    def lora(self, rank: int) -> tuple[Trace, list[ParameterSize]] | None:
        """A step that trains adapters, and their parameters; it changes the model, so it comes last."""
        try:
            from autoprog_diffusion.tasks.lora import LoraSettings, add_lora

            with self._device:
                add_lora(self.model, LoraSettings(rank=rank), seed=0)
        except (GrowthError, ImportError):
            return None
        trained = [each for each in self.model.parameters() if each.requires_grad]
        sizes = [ParameterSize(tuple(each.shape), layer=True, stored=()) for each in trained]
        return self._traced.step(self.inputs(1)), sizes

    def inputs(self, batch: int) -> dict[str, Any]:
        """Inputs of a batch."""
        shape = Shape(
            batch,
            self.shape.side,
            self.shape.text,
            self.shape.frames,
        )
        with self._device:
            return make_inputs(self.model, shape)


def make_profile(
    source: ModelSource,
    shape: Shape,
    *,
    rank: int = RANK,
    autocast: bool = True,
    stages: StageRequest | None = None,
    parallel: bool = False,
) -> Profile:
    """Trace a few steps of a model without memory.

    Args:
        source: The model.
        shape: Of one image.
        rank: Of LoRA adapters.
        autocast: Whether the forward pass runs under bfloat16 autocast.
        stages: Stages whose FLOPs are to be counted exactly.
        parallel: Trace that of LoRA in another process meanwhile. It cannot where autograd has run in this one.

    Raises:
        PlannerError: The model cannot be built.
        UnitError: Its blocks cannot be named.
    """
    import_class(source)
    lora = LoraTrace(source, shape, rank, autocast=autocast, parallel=parallel)
    with without_memory() as device:
        builder = Builder(source, shape, device, autocast=autocast)
        layout = builder.layout
        tape = Tape()
        preset = GrowthConfig.for_model(builder.model)
        if stages is not None:
            builder.embed_stages(stages.config or preset)
        full = builder.full(tape)
        live = builder.live()
        stage_flops = () if stages is None else stages.flops(builder, tape, stages.config or preset)
    return Profile(
        source=source,
        shape=shape,
        names=tuple(unit.name for unit in layout.blocks),
        block_sizes=tuple(block_sizes(builder.model, layout)),
        sizes=parameter_sizes(builder.model, layout),
        buffers=buffer_bytes(builder.model),
        inputs=full.start["activations"],
        full=full,
        live=live,
        lora=lora.result(),
        can_recompute=builder.route is not None,
        preset=preset,
        stage_flops=stage_flops,
    )


class LoraTrace:
    """A step that trains adapters, and their parameters; None where a class takes none.

    Args:
        source: The model.
        shape: Of one image.
        rank: Of the adapters.
        autocast: Whether the forward pass runs under bfloat16 autocast.
        parallel: Whether another process begins at once.
    """

    def __init__(self, source: ModelSource, shape: Shape, rank: int, *, autocast: bool, parallel: bool) -> None:
        self._trace = partial(_lora, source, shape, rank, autocast=autocast)
        forks = parallel and "fork" in multiprocessing.get_all_start_methods()
        self._child = Forked(self._trace, quiet=True) if forks else None

    def result(self) -> tuple[Trace, list[ParameterSize]] | None:
        """The step, traced in this process where the other one could not."""
        found = {} if self._child is None else self._child.result()
        return self._trace() if isinstance(found, dict) else found


def _lora(source: ModelSource, shape: Shape, rank: int, *, autocast: bool) -> tuple[Trace, list[ParameterSize]] | None:
    """A step that trains adapters, and their parameters."""
    with without_memory() as device:
        return Builder(source, shape, device, autocast=autocast).lora(rank)


@dataclass(frozen=True)
class StageRequest:
    """Stages whose FLOPs are to be counted exactly.

    Attributes:
        config: Of the run; None for the recipes' default for the model.
        steps: Optimizer steps of the run.
        batch: Images of a forward pass.
    """

    config: GrowthConfig | None
    steps: int
    batch: int

    def flops(self, builder: Builder, tape: Tape, config: GrowthConfig) -> tuple[int, ...]:
        """FLOPs of a step of every stage; none where an operation is not known.

        Args:
            builder: Of the model.
            tape: Of a forward pass of one image.
            config: Of the run.
        """
        layout = builder.layout
        if self.batch != 1:
            tape = Tape()
            builder.record(tape, self.batch)
        if not tape.exact:
            return ()
        sizes = block_sizes(builder.model, layout)
        plan = fixed_plan(
            config,
            len(sizes),
            self.steps,
            sizes,
        )
        return tuple(tape.stage_flops(layout, stage.blocks) for stage in plan.stages)


def import_class(source: ModelSource) -> None:
    """Import a model's class, and what LoRA needs, before tensors of the device without memory are made."""
    with torch.device("meta"):
        source.build()
    try:
        import autoprog_diffusion.tasks.lora  # noqa: F401
    except ImportError:
        return


def usable_route(model: nn.Module, route: Route | None) -> Route | None:
    """The way in which a model lets a function run its blocks' parts, if it has one."""
    if route is None:
        return None
    try:
        route(
            model,
            lambda call, *args, **kwargs: call(*args, **kwargs),
        )()
    except GrowthError:
        return None
    return route


def latent_side(source: ModelSource, pixels: int) -> int:
    """Side of the latents of images of another size.

    Args:
        source: The model.
        pixels: Side of the images.
    """
    own = default_side(source.cls, source.config)
    return (
        max(
            1,
            round(own * pixels / source.pixels),
        )
        if source.pixels
        else max(1, pixels // 8)
    )
