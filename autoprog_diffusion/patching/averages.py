"""Finds the averages of the model, which must not lose what is frozen."""

from __future__ import annotations

import libcst as cst

from .parts import Average, Denoiser, Loop
from .source import Source, called, dotted
from .variables import Variables


def find_averages(source: Source, variables: Variables, loop: Loop, denoiser: Denoiser) -> list[Average]:
    """The steps of EMAModels of the model that grows.

    Raises:
        PatchError: One is stepped with other parameters than it was built from.
    """
    built = {one.target: one.value for one in variables.assignments if is_average(one.value)}
    found = []
    for call in source.calls(loop.outermost):
        name = dotted(call.func) or ""
        average = name.removesuffix(".step")
        if average == name or average not in built or not call.args:
            continue
        argument = source.code(call.args[0].value)
        if argument == f"{denoiser.name}.parameters()":
            found.append(Average(average, call.args[0], whole=True))
        elif argument.endswith(".parameters()"):
            continue  # of another model
        else:
            constructed = built[average]
            first = constructed.args[0].value if isinstance(constructed, cst.Call) and constructed.args else None
            if first is None or source.code(first) != argument:
                source.refuse(
                    call,
                    f"{average} is stepped with {argument}, and built from something else.",
                )
            found.append(Average(average, call.args[0], whole=False))
    return found


def is_average(value: cst.BaseExpression) -> bool:
    """Whether a value is a new `EMAModel`."""
    return isinstance(value, cst.Call) and called(value) == "EMAModel"
