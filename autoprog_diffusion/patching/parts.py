"""The parts of a training script, as they were found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from .source import Scope, Source


@dataclass(frozen=True)
class Loop:
    """The training loop.

    Attributes:
        accelerator: Name of the Accelerator.
        scope: The function that constructs it, which trains.
        backward: The call of `accelerator.backward`.
        outermost: The loop over epochs, or over batches where there is no other.
        optimizer: Name of the optimizer.
        stepped: The call of its `step`.
    """

    accelerator: str
    scope: Scope
    backward: cst.Call
    outermost: cst.For | cst.While
    optimizer: str
    stepped: cst.Call


@dataclass(frozen=True)
class Denoiser:
    """The model that grows.

    Attributes:
        name: Its variable.
        class_name: Its class, where the script names one.
        parameters: The calls `name.parameters()` that reach the optimizer.
        companions: Variables of the other models in the same optimizer, such as text encoders.
        named: Whether the optimizer gets them by `named_parameters()`, which growth leaves alone.
        first: The first statement that takes its parameters for the optimizer.
    """

    name: str
    class_name: str | None
    parameters: tuple[cst.Call, ...]
    companions: tuple[str, ...]
    named: bool
    first: cst.CSTNode


@dataclass(frozen=True)
class Prepared:
    """What `accelerator.prepare` returned.

    Attributes:
        call: The last call that gets the model.
        name: Variable of the prepared model.
    """

    call: cst.Call
    name: str


@dataclass(frozen=True)
class Average:
    """One `ema.step(...)` of the model.

    Attributes:
        name: Variable of the average.
        argument: What it is stepped with.
        whole: Whether that is all of the model's parameters.
    """

    name: str
    argument: cst.Arg
    whole: bool


@dataclass(frozen=True)
class Training:
    """A training script, understood: its parts, and where growth's lines belong.

    Attributes:
        source: The script.
        loop: Its loop.
        denoiser: The model that grows.
        prepared: The model that the loop calls.
        averages: Steps of averages of the model.
        steps: Expression of the number of optimizer steps.
        import_after: Statement below which the import belongs.
        construct_before: Statement above which the GrowthScheduler is constructed.
        prepare_after: Statement below which `growth.prepare` belongs.
        step_after: Statement below which `growth.step` belongs; None for the beginning of `synced`.
        synced: The `if accelerator.sync_gradients:` that counts an optimizer step.
        fold_after: Statement below which `growth.fold` belongs; None where nothing is saved after the loop.
        saves_in_loop: Statements inside of the loop that save the model as a result.
        no_embedding: Why there is no stage embedding; empty if there may be one.
    """

    source: Source
    loop: Loop
    denoiser: Denoiser
    prepared: Prepared
    averages: tuple[Average, ...]
    steps: str
    import_after: cst.BaseStatement
    construct_before: cst.BaseStatement
    prepare_after: cst.BaseStatement
    step_after: cst.BaseStatement | None
    synced: cst.If
    fold_after: cst.BaseStatement | None
    saves_in_loop: tuple[cst.BaseStatement, ...] = ()
    no_embedding: str = ""
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """What was found, with line numbers of the script as it is, as JSON can hold it."""
        line = self.source.line
        return {
            "script": str(self.source.path),
            "model": self.denoiser.name,
            "class": self.denoiser.class_name,
            "prepared_model": self.prepared.name,
            "companions": list(self.denoiser.companions),
            "optimizer": self.loop.optimizer,
            "steps": self.steps,
            "stage_embedding": not self.no_embedding,
            "lines": {
                "parameters": [line(call) for call in self.denoiser.parameters],
                "accelerator.prepare": line(self.prepared.call),
                "backward": line(self.loop.backward),
                "optimizer.step": line(self.loop.stepped),
                "sync_gradients": line(self.synced),
                "averages": [line(one.argument) for one in self.averages],
                "saves_in_loop": [line(one) for one in self.saves_in_loop],
            },
        }
