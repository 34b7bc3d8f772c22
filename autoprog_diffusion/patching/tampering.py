"""Notices what would work against growth: changes to the model, and to what trains of it, in between."""

from __future__ import annotations

import libcst as cst

from .averages import is_average
from .parts import Denoiser, Loop, Prepared
from .places import calls_of
from .source import Source, called, dotted
from .variables import Variables


# Methods that change which of a model's parameters require gradient, or which parameters it has.
TAMPERING = (
    "requires_grad_",
    "add_adapter",
    "set_adapter",
    "set_adapters",
    "enable_adapters",
    "disable_adapters",
    "delete_adapters",
    "enable_lora",
    "disable_lora",
    "fuse_lora",
    "unfuse_lora",
    "unload_lora",
)


def check_left_alone(
    source: Source, variables: Variables, loop: Loop, *, denoiser: Denoiser, prepared: Prepared
) -> None:
    """Refuse a script that changes the model, or what trains of it, after growth has begun.

    Raises:
        PatchError: It does.
    """
    start = source.place(denoiser.first)
    end = source.end(loop.outermost)
    names = {denoiser.name, prepared.name}
    reason = (
        f"it changes which parameters of {denoiser.name} require gradient, and growth rules over that from the "
        f"{loop.optimizer} on."
    )
    for node in variables.nodes:
        if isinstance(node, cst.For) and not source.names(node.iter).isdisjoint(names) and node is not loop.outermost:
            if source.end(node) > start[0] and source.line(node) <= end and opens(source, node):
                source.refuse(
                    opens(source, node),
                    reason,
                )
    for call in calls_of(variables):
        late = source.place(call) > start and source.line(call) <= end
        if late and called(call) in TAMPERING and isinstance(call.func, cst.Attribute):
            if not source.names(call.func.value).isdisjoint(names):
                source.refuse(
                    call,
                    f"{called(call)}(): {reason}",
                )
    for one in variables.assignments:
        late = start < source.place(one.node) and source.line(one.node) <= end
        if not late:
            continue
        allowed = (f"{loop.accelerator}.prepare", "torch.compile")
        inside = isinstance(one.value, cst.Call) and dotted(one.value.func) in allowed
        if one.target in names and not inside:
            source.refuse(
                one.node,
                f"{one.target} becomes something else after the optimizer is built from it.",
            )
        if is_average(one.value) and f"{denoiser.name}.parameters()" in source.code(one.value):
            source.refuse(
                one.node,
                f"the average is built after {loop.optimizer}: build it before.",
            )


def opens(source: Source, loop: cst.For) -> cst.CSTNode | None:
    """Where a loop over parameters or modules sets `requires_grad`, or None."""
    if not isinstance(loop.target, cst.BaseExpression):
        return None
    own = source.names(loop.target)
    for node in source.walk(loop.body, inner=False):
        if isinstance(node, cst.AssignTarget) and (dotted(node.target) or "").endswith(".requires_grad"):
            if not source.names(node.target).isdisjoint(own):
                return node
        if isinstance(node, cst.Call) and called(node) == "requires_grad_" and isinstance(node.func, cst.Attribute):
            if not source.names(node.func.value).isdisjoint(own):
                return node
    return None
