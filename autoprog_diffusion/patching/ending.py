"""Finds where a script saves: checkpoints, results inside of the loop, and the export at the end."""

from __future__ import annotations

import libcst as cst

from .parts import Average, Denoiser, Loop, Prepared
from .places import body_of
from .source import Source, called, dotted
from .variables import Variables


SAVES = ("save_pretrained", "save_model", "save_file")
# An adapter has no stage embedding.
EXPORTS = (*SAVES, "save_lora_weights", "get_peft_model_state_dict")
# Uses of `model.parameters()` in a loop that make no second model of it, and calls that only pass it on.
HARMLESS = ("clip_grad_norm_", "step", "store", "copy_to", "restore", "sum", "numel", "save_lora_weights")
TRANSPARENT = ("chain", "list", "tuple", "filter", "iter")


def state_saves(source: Source, node: cst.CSTNode) -> list[cst.Call]:
    """Calls below a node that save the accelerator's state, themselves or by a function of the script."""
    helpers = functions_that(source, ("save_state",))
    return [call for call in source.calls(node) if called(call) == "save_state" or dotted(call.func) in helpers]


def functions_that(source: Source, methods: tuple[str, ...]) -> set[str]:
    """Names of the script's own functions, of the module, that call one of `methods`."""
    found = set()
    for statement in source.module.body:
        if isinstance(statement, cst.FunctionDef):
            if any(called(call) in methods for call in source.calls(statement.body, inner=True)):
                found.add(statement.name.value)
    return found


def result_saves(
    source: Source, variables: Variables, node: cst.CSTNode, *, names: set[str], methods: tuple[str, ...] = EXPORTS
) -> list[cst.Call]:
    """Calls below a node that save the model as a result, or hand it to a function of the script that does."""
    models: set[str] = set()
    for name in names:
        models |= variables.derived(name)
    helpers = functions_that(source, methods)
    found = []
    for call in source.calls(node):
        if called(call) in methods and not source.names(call).isdisjoint(models):
            found.append(call)
        elif dotted(call.func) in helpers:
            given: set[str] = set().union(*(source.names(arg) for arg in call.args)) if call.args else set()
            if not given.isdisjoint(models):
                found.append(call)
    return found


def statements_that_save(source: Source, saves: list[cst.Call]) -> list[cst.BaseStatement]:
    """The innermost statements that these calls are part of.

    Raises:
        PatchError: One shares its line with an `if` or a loop.
    """
    found: dict[cst.BaseStatement, None] = {}
    for call in saves:
        statement = next(above for above in source.ancestors(call) if isinstance(above, cst.BaseStatement))
        if not isinstance(statement, cst.SimpleStatementLine):
            source.refuse(
                call,
                "the model is saved in the line of an `if` or of a loop: put it below.",
            )
        found[statement] = None
    return list(found)


def place_fold(
    source: Source, variables: Variables, loop: Loop, *, names: set[str], averages: list[Average], embedded: bool
) -> cst.BaseStatement | None:
    """The statement below which `growth.fold` belongs: the average is copied in, and the state saved; None for none.

    Raises:
        PatchError: The model is saved before its average is copied in, or its state after that.
    """
    body = body_of(loop)
    statements = list(body.body)  # pyright: ignore[reportAttributeAccessIssue]
    begin = statements.index(source.statement(loop.outermost, body))
    after = statements[begin + 1 :]
    exports = [call for one in after for call in result_saves(source, variables, one, names=names)]
    if not exports:
        return None
    place: cst.BaseStatement = statements[begin]
    for one in after:
        waits = any(dotted(call.func) == f"{loop.accelerator}.wait_for_everyone" for call in source.calls(one))
        if waits and isinstance(one, cst.SimpleStatementLine) or state_saves(source, one):
            place = one
    known = {one.name for one in averages}
    copies = [
        call
        for one in after
        for call in source.calls(one)
        if called(call) == "copy_to" and isinstance(call.func, cst.Attribute) and dotted(call.func.value) in known
    ]
    if copies and embedded:
        place = around_copy(source, copies[-1])
        for call in exports:
            if source.place(call) < source.place(copies[-1]):
                source.refuse(
                    call,
                    f"the model is saved before {source.code(copies[-1].func)} in line {source.line(copies[-1])}.",
                )
    for call in exports:
        if source.line(call) <= source.end(place) and source.place(call) > source.place(place):
            source.refuse(
                call,
                "the model is saved before the state of training.",
            )
    first = min(exports, key=source.place)
    if source.place(first) < source.place(place):
        source.refuse(
            first,
            "the model is saved before training has ended and its state is saved.",
        )
    return place


def around_copy(source: Source, copy: cst.Call) -> cst.BaseStatement:
    """The statement below which the average is in the model: the `if` around `ema.copy_to(...)`, or that call."""
    path = [above for above in source.ancestors(copy) if isinstance(above, cst.BaseStatement)]
    statement, *above = path
    outer = above[0] if above else None
    # `if args.use_ema:` belongs to the copy; `if accelerator.is_main_process:` holds the rest as well.
    if isinstance(outer, cst.If) and outer.orelse is None and "main_process" not in source.code(outer.test):
        if isinstance(outer.body, cst.IndentedBlock) and outer.body.body[-1] is statement:
            return outer
    return statement


def why_no_embedding(source: Source, loop: Loop, denoiser: Denoiser, prepared: Prepared) -> str:
    """Why the stage embedding must stay off, or nothing: a second model made from the first would lack it."""
    if denoiser.named:
        return f"the optimizer is built from {denoiser.name}.named_parameters()"
    names = {denoiser.name, prepared.name}
    for call in source.calls(loop.outermost):
        if called(call) not in ("parameters", "state_dict", "named_parameters"):
            continue
        if not isinstance(call.func, cst.Attribute) or dotted(call.func.value) not in names:
            continue
        for user in users(source, loop, call):
            if called(user) not in HARMLESS:
                return f"line {source.line(user)} gives the weights of {denoiser.name} to another model"
    return ""


def users(source: Source, loop: Loop, node: cst.CSTNode) -> list[cst.Call]:
    """The calls of the loop that get a value as an argument, also by way of a variable."""
    for above in source.ancestors(node):
        if isinstance(above, cst.Call) and called(above) not in TRANSPARENT:
            return [above]
        if isinstance(above, cst.Assign):
            targets: set[str] = set().union(*(source.names(one.target) for one in above.targets))
            return [
                call
                for call in source.calls(loop.outermost)
                if any(not source.names(arg).isdisjoint(targets) for arg in call.args)
            ]
    return []
