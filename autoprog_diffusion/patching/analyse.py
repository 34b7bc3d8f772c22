"""Understands a training script: every part that growth touches, or the line and the reason why not."""

from __future__ import annotations

import ast

import libcst as cst

from .averages import find_averages
from .denoiser import find_denoiser
from .ending import SAVES, place_fold, result_saves, state_saves, statements_that_save, why_no_embedding
from .loop import find_loop
from .parts import Average, Denoiser, Loop, Prepared, Training
from .places import (
    body_of,
    find_prepared,
    find_steps,
    find_synced,
    place_prepare,
    place_step,
)
from .source import Source, called, dotted
from .tampering import check_left_alone
from .variables import Variables


PACKAGE = "autoprog_diffusion"
# Methods of pipelines that add an adapter to a model.
LOADERS = ("load_lora_into_unet", "load_lora_into_transformer")
# Names that the added lines bring into the script.
ADDED = ("growth", "GrowthConfig", "GrowthScheduler")


def analyse(source: Source, *, model: str | None = None, steps: str | None = None) -> Training:
    """Understand a training script.

    Args:
        source: The script.
        model: Variable of the model that grows, where the script trains several.
        steps: Expression of the number of optimizer steps, where the loop does not show it.

    Raises:
        PatchError: The script is not of the kind that is known, or does something growth does not go with; it names
            the line.
    """
    check_unpatched(source)
    loop = find_loop(source)
    variables = Variables(source, loop.scope)
    denoiser = find_denoiser(source, variables, loop, model)
    prepared = find_prepared(source, variables, loop, denoiser)
    check_left_alone(source, variables, loop, denoiser=denoiser, prepared=prepared)
    averages = find_averages(source, variables, loop, denoiser)
    synced, counted, counter = find_synced(source, loop)
    steps = find_steps(source, variables, loop, counter) if steps is None else check_expression(source, steps)
    reason = why_no_embedding(source, loop, denoiser, prepared)
    names = {denoiser.name, prepared.name}
    in_loop = result_saves(source, variables, loop.outermost, names=names, methods=SAVES)
    saves = state_saves(source, loop.outermost)
    fold_after = place_fold(source, variables, loop, names=names, averages=averages, embedded=not reason)
    if fold_after is None and not in_loop:
        reason = reason or f"{denoiser.name} is saved in checkpoints alone, which do not hold it"
    return Training(
        source=source,
        loop=loop,
        denoiser=denoiser,
        prepared=prepared,
        averages=tuple(averages),
        steps=steps,
        import_after=place_import(source, loop),
        construct_before=place_construct(source, loop, denoiser, prepared),
        prepare_after=place_prepare(source, variables, loop, prepared=prepared, steps=steps),
        step_after=place_step(source, loop, synced=synced, counted=counted, averages=averages, saves=saves),
        synced=synced,
        fold_after=fold_after,
        saves_in_loop=() if reason else tuple(statements_that_save(source, in_loop)),
        no_embedding=reason,
        notes=notes(source, denoiser, averages),
    )


def place_construct(source: Source, loop: Loop, denoiser: Denoiser, prepared: Prepared) -> cst.BaseStatement:
    """The statement above which the GrowthScheduler is constructed: the optimizer gets the parameters below.

    Raises:
        PatchError: That is below `accelerator.prepare`.
    """
    statement = source.statement(denoiser.first, body_of(loop))
    if statement is None or source.place(statement) > source.place(prepared.call):
        source.refuse(
            denoiser.first,
            f"{loop.optimizer} is built after {loop.accelerator}.prepare.",
        )
    return statement


def notes(source: Source, denoiser: Denoiser, averages: list[Average]) -> tuple[str, ...]:
    """What a user may want to know or change beside the added lines."""
    found = []
    for name in dict.fromkeys(one.name for one in averages):
        found.append(
            f"the script averages {denoiser.name} itself, as {name}. For runs that do, write "
            f"GrowthConfig.for_model({denoiser.name}, ema_decay={name}.decay), and the averaged stage embedding is "
            "folded with the averaged weights; otherwise the last one is. Where a flag decides whether there is a "
            f"{name}, that argument must depend on the flag too."
        )
    for call in source.calls(source.module, inner=True):
        if called(call) in LOADERS and "hook" in getattr(getattr(source.scope(call), "name", None), "value", ""):
            found.append(
                f"line {source.line(call)} adds an adapter when a checkpoint is loaded: if the script has one of its "
                "own already, growth refuses to resume a model that has changed."
            )
    return tuple(found)


def check_unpatched(source: Source) -> None:
    """Refuse a script that has growth already, or whose own names growth's would hide.

    Raises:
        PatchError: It is patched, or uses one of the names.
    """
    for node in source.walk(source.module):
        if isinstance(node, cst.Import | cst.ImportFrom) and PACKAGE in source.code(node):
            source.refuse(
                node,
                f"it imports {PACKAGE}: it is patched already.",
            )
    used = source.name_used(ADDED)
    if used is not None:
        source.refuse(
            used,
            f"the name {used.value} is used already: growth's lines would hide it; rename it.",
        )


def check_expression(source: Source, steps: str) -> str:
    """The user's expression of the steps.

    Raises:
        PatchError: It is no expression of Python.
    """
    try:
        ast.parse(steps, mode="eval")
    except SyntaxError:
        source.refuse(
            None, f"--steps {steps!r} is no expression: give one that is known there, as args.max_train_steps."
        )
    return steps


def place_import(source: Source, loop: Loop) -> cst.BaseStatement:
    """The statement below which the import belongs: the last import of accelerate, in the order of the alphabet.

    Raises:
        PatchError: The module imports nothing at its top.
    """
    imports = [one for one in source.module.body if isinstance(one, cst.SimpleStatementLine) and is_import(one)]
    host = [one for one in imports if module_of(one).partition(".")[0] == "accelerate"]
    found = host or imports
    body = body_of(loop)
    start = loop.scope if isinstance(loop.scope, cst.FunctionDef) else source.statement(loop.outermost, body)
    early = [one for one in found if start is not None and source.place(one) < source.place(start)]
    if not early:
        source.refuse(
            None,
            "it imports nothing at its top: from accelerate import Accelerator was expected.",
        )
    return early[-1]


def is_import(statement: cst.SimpleStatementLine) -> bool:
    """Whether a statement imports, and does nothing else."""
    return all(isinstance(one, cst.Import | cst.ImportFrom) for one in statement.body)


def module_of(statement: cst.SimpleStatementLine) -> str:
    """Name of the first module that a statement imports."""
    first = statement.body[0]
    if isinstance(first, cst.ImportFrom):
        return (dotted(first.module) or "") if first.module is not None else ""
    if isinstance(first, cst.Import):
        return dotted(first.names[0].name) or ""
    return ""
