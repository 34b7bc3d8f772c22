"""Finds the training loop: the Accelerator, its backward pass, and the one optimizer that steps."""

from __future__ import annotations

import libcst as cst

from .parts import Loop
from .source import Scope, Source, called, dotted, owner
from .variables import Variables


def find_loop(source: Source) -> Loop:
    """Find what trains.

    Raises:
        PatchError: There is no Accelerator, or several; the loop is not where the Accelerator is; there are several
            backward passes or optimizers, or none.
    """
    name, scope = find_accelerator(source)
    variables = Variables(source, scope)
    backward = find_backward(source, name, scope)
    body = source.statement(backward, scope if isinstance(scope, cst.Module) else scope.body)
    loops = [above for above in source.ancestors(backward) if isinstance(above, cst.For | cst.While)]
    if not loops or body is None:
        source.refuse(
            backward,
            f"{name}.backward is not inside a loop: growth counts the steps of a training loop.",
        )
    outermost = loops[-1]
    optimizer, stepped = find_optimizer(source, variables, outermost)
    if source.place(stepped) < source.place(backward):
        source.refuse(
            stepped,
            f"{optimizer}.step() comes before {name}.backward: another order is expected.",
        )
    return Loop(
        accelerator=name,
        scope=scope,
        backward=backward,
        outermost=outermost,
        optimizer=optimizer,
        stepped=stepped,
    )


def find_accelerator(source: Source) -> tuple[str, Scope]:
    """Name of the one Accelerator, and the function that constructs it.

    Raises:
        PatchError: There is none, there are several, or it is no plain variable of a function.
    """
    built = [call for call in source.calls(source.module, inner=True) if called(call) == "Accelerator"]
    if not built:
        reason = "it constructs no accelerate.Accelerator"
        other = [call for call in source.calls(source.module, inner=True) if called(call) == "backward"]
        if other:
            reason += f", and {source.code(other[0].func)} runs the backward pass"
        source.refuse(
            other[0] if other else None,
            f"{reason}: put the lines of docs/integrate.md in by hand.",
        )
    if len(built) > 1:
        source.refuse(
            built[1],
            f"a second Accelerator (the first is in line {source.line(built[0])}): use one.",
        )
    assign = source.parent(built[0])
    target = assign.targets[0].target if isinstance(assign, cst.Assign) and len(assign.targets) == 1 else None
    if not isinstance(target, cst.Name):
        source.refuse(
            built[0],
            "the Accelerator is no plain variable: write accelerator = Accelerator(...).",
        )
    again = [one for one in Variables(source, source.scope(built[0])).of(target.value) if one.value is not built[0]]
    if again:
        source.refuse(
            again[0].node,
            f"{target.value} is assigned again: give the other thing another name.",
        )
    return target.value, source.scope(built[0])


def find_backward(source: Source, accelerator: str, scope: Scope) -> cst.Call:
    """The one call of `accelerator.backward`.

    Raises:
        PatchError: There is none, there are several, or another function makes it.
    """
    found = [
        call for call in source.calls(source.module, inner=True) if dotted(call.func) == f"{accelerator}.backward"
    ]
    if not found:
        other = [call for call in source.calls(source.module, inner=True) if called(call) == "backward"]
        where = f", but {source.code(other[0].func)}" if other else ""
        source.refuse(
            other[0] if other else None,
            f"no {accelerator}.backward(loss) runs the backward pass{where}.",
        )
    for call in found:
        if source.scope(call) is not scope:
            source.refuse(
                call, f"{accelerator}.backward is called in another function than the one that has the Accelerator."
            )
    if len(found) > 1:
        source.refuse(
            found[1],
            f"a second backward pass (the first is in line {source.line(found[0])}): it trains two models, or steps "
            "twice.",
        )
    return found[0]


def find_optimizer(source: Source, variables: Variables, loop: cst.CSTNode) -> tuple[str, cst.Call]:
    """Name of the one optimizer that steps in the loop, and the call that does.

    Raises:
        PatchError: None steps, or several do, or one does twice.
    """
    inside = list(source.calls(loop))
    cleared = {owner(call) for call in inside if is_method(call, "zero_grad")}
    steps = [call for call in inside if is_method(call, "step") and owner(call) in cleared]
    if not steps:
        source.refuse(
            loop,
            "no optimizer was found in the training loop: .step() and .zero_grad() of one variable.",
        )
    name = owner(steps[0])
    if len(steps) > 1:
        other = owner(steps[1])
        reason = f"{name}.step() is called twice" if other == name else f"a second optimizer, {other}, steps"
        source.refuse(
            steps[1],
            f"{reason} (the first step is in line {source.line(steps[0])}): growth counts one step of one optimizer.",
        )
    if not name.isidentifier():
        source.refuse(
            steps[0],
            f"the optimizer {name} is no plain variable of the training function.",
        )
    for call in inside:
        if dotted(call.func) == f"{name}.step" and any(arg.keyword is None for arg in call.args):
            source.refuse(
                call,
                f"{name}.step is given a closure, which may run the model several times.",
            )
    check_built(source, variables, name, steps[0])
    return name, steps[0]


def check_built(source: Source, variables: Variables, name: str, stepped: cst.Call) -> None:
    """Refuse an optimizer that is built elsewhere, wrapped, or DeepSpeed's.

    Raises:
        PatchError: It is.
    """
    built = [one for one in variables.of(name) if not is_prepare(one.value)]
    if not built:
        source.refuse(
            stepped,
            f"{name} is not built in the function that trains.",
        )
    for one in built:
        if name in {dotted(node) for node in source.walk(one.value)}:
            source.refuse(
                one.node,
                f"{name} is wrapped by another optimizer: growth must see the one that steps.",
            )
    if all("Dummy" in source.code(one.value).partition("(")[0] for one in built):
        source.refuse(
            built[0].node,
            f"{name} is DeepSpeed's own, which cannot grow (see docs/scale.md).",
        )


def is_method(call: cst.Call, name: str) -> bool:
    """Whether a call is one of the method called `name`."""
    return isinstance(call.func, cst.Attribute) and call.func.attr.value == name


def is_prepare(value: cst.BaseExpression) -> bool:
    """Whether a value is what some `accelerator.prepare` returned."""
    return isinstance(value, cst.Call) and is_method(value, "prepare")
