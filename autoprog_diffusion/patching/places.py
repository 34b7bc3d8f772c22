"""Finds where lines belong before and in the loop: what `accelerator.prepare` returns, the steps, the averages."""

from __future__ import annotations

import libcst as cst

from .parts import Average, Denoiser, Loop, Prepared
from .source import Source, called, dotted
from .variables import Variables


STEPS_FLAG = "say how many by --steps EXPRESSION"


def find_prepared(source: Source, variables: Variables, loop: Loop, denoiser: Denoiser) -> Prepared:
    """Find the variable that holds the prepared model.

    Raises:
        PatchError: No `accelerator.prepare` gets the model, or it is not clear what it returns for it.
    """
    everything = [call for call in calls_of(variables) if dotted(call.func) == f"{loop.accelerator}.prepare"]
    found = [call for call in everything if denoiser.name in names_given(call)]
    if not found:
        source.refuse(
            everything[0] if everything else None,
            f"no {loop.accelerator}.prepare gets {denoiser.name}, the model that {loop.optimizer} trains.",
        )
    names = {prepared_name(source, call, denoiser.name) for call in found}
    if len(names) > 1:
        source.refuse(
            found[-1],
            f"the prepared model is called {' or '.join(sorted(names))}: use one name.",
        )
    always = any(source.statement(call, body_of(loop)) is simple(source, call) for call in found)
    for call in everything:
        if loop.optimizer in names_given(call) and call not in found and not always:
            source.refuse(
                call, f"here {loop.accelerator}.prepare gets {loop.optimizer} and not {denoiser.name}: does it train?"
            )
    return Prepared(max(found, key=source.place), names.pop())


def calls_of(variables: Variables) -> list[cst.Call]:
    """All calls of a scope, in the order of the text."""
    return [node for node in variables.nodes if isinstance(node, cst.Call)]


def body_of(loop: Loop) -> cst.CSTNode:
    """The block of the function that trains."""
    return loop.scope if isinstance(loop.scope, cst.Module) else loop.scope.body


def simple(source: Source, node: cst.CSTNode) -> cst.CSTNode | None:
    """The nearest statement that a node is part of."""
    return next((above for above in source.ancestors(node) if isinstance(above, cst.BaseStatement)), None)


def names_given(call: cst.Call) -> list[str | None]:
    """The names that a call gets by their places; None for anything else."""
    return [dotted(arg.value) if arg.star == "" else None for arg in call.args]


def prepared_name(source: Source, call: cst.Call, model: str) -> str:
    """The variable that gets what `accelerator.prepare` returns for the model.

    Raises:
        PatchError: It is kept in no variable of its own.
    """
    given = names_given(call)
    assign = source.parent(call)
    target = assign.targets[0].target if isinstance(assign, cst.Assign) and len(assign.targets) == 1 else None
    if isinstance(target, cst.Name) and len(given) == 1:
        return target.value
    if isinstance(target, cst.Tuple | cst.List) and len(target.elements) == len(given) and None not in given:
        element = target.elements[given.index(model)].value
        if isinstance(element, cst.Name):
            return element.value
    source.refuse(
        call,
        f"it is not clear what holds the prepared {model}: write {model}, ... = accelerator.prepare({model}, ...).",
    )


def find_synced(source: Source, loop: Loop) -> tuple[cst.If, cst.BaseStatement | None, str | None]:
    """Find the `if accelerator.sync_gradients:` that follows the optimizer's step.

    Returns:
        It, and the statement in it that counts the step, with the counter's name; None where none counts.

    Raises:
        PatchError: There is none, or several count.
    """
    condition = f"{loop.accelerator}.sync_gradients"
    after = source.place(loop.stepped)
    found = [
        node
        for node in source.walk(loop.outermost, inner=False)
        if isinstance(node, cst.If) and dotted(node.test) == condition and source.place(node) > after
    ]
    if not found:
        source.refuse(
            loop.stepped,
            f"no `if {condition}:` follows {loop.optimizer}.step(): there growth counts optimizer steps, so that "
            "accumulated gradients count once.",
        )
    for block in found:
        check_unconditional(source, loop, block)
    counted = [(block, *one) for block in found for one in counters(source, block)]
    if len(counted) > 1:
        source.refuse(
            counted[1][1],
            f"a second counter beside {counted[0][2]}: which one counts optimizer steps?",
        )
    if not counted:
        return found[0], None, None
    return counted[0]


def check_unconditional(source: Source, loop: Loop, block: cst.If) -> None:
    """Refuse an `if accelerator.sync_gradients:` that not every process reaches at every step.

    Raises:
        PatchError: It stands inside of another `if`.
    """
    for above in source.ancestors(block):
        if above is loop.outermost:
            return
        if isinstance(above, cst.If | cst.Try):
            source.refuse(
                block,
                f"it stands inside of the block of line {source.line(above)}: put it outside.",
            )


def counters(source: Source, block: cst.If) -> list[tuple[cst.BaseStatement, str]]:
    """The statements of a block that count one up, with what they count; not those inside of its statements."""
    if not isinstance(block.body, cst.IndentedBlock):
        source.refuse(
            block,
            "the body of this `if` is in the same line: put it below.",
        )
    found = []
    for statement in block.body.body:
        for node in source.children(statement):
            if isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign):
                if source.code(node.value) == "1":
                    found.append((statement, source.code(node.target)))
    return found


def place_step(
    source: Source,
    loop: Loop,
    *,
    synced: cst.If,
    counted: cst.BaseStatement | None,
    averages: list[Average],
    saves: list[cst.Call],
) -> cst.BaseStatement | None:
    """The statement of the synced block below which `growth.step` belongs; None for the beginning of the block.

    Raises:
        PatchError: An average steps after the state is saved, or outside of the block.
    """
    body: list[cst.BaseStatement] = list(synced.body.body)  # pyright: ignore[reportAssignmentType]
    inside = [source.statement(one.argument, synced.body) for one in averages]
    for one, statement in zip(averages, inside):
        if statement is None:
            source.refuse(
                one.argument,
                f"{one.name} is stepped outside of `if {source.code(synced.test)}:`.",
            )
    earliest = [body.index(statement) for statement in inside if isinstance(statement, cst.BaseStatement)]
    if counted is not None:
        earliest.append(body.index(counted))
    saving = [source.statement(call, synced.body) for call in saves]
    for call in saves:
        if source.place(loop.stepped) < source.place(call) < source.place(synced):
            source.refuse(
                call,
                f"the state is saved before `if {source.code(synced.test)}:` counts the step.",
            )
    latest = min((body.index(one) for one in saving if one is not None), default=len(body))
    place = max(earliest, default=-1)
    if place >= latest:
        # The counter may follow the saving: growth need not.
        place = max((body.index(one) for one in inside if isinstance(one, cst.BaseStatement)), default=-1)
    if place >= latest:
        source.refuse(
            saves[0], "the state is saved before the average is stepped: growth.step() has no place between them."
        )
    return body[place] if place >= 0 else None


def find_steps(source: Source, variables: Variables, loop: Loop, counter: str | None) -> str:
    """The expression of the number of optimizer steps: what the loop's counter is compared with.

    Raises:
        PatchError: There is none, or it changes inside of the loop.
    """
    limits = []
    for node in source.walk(loop.outermost, inner=False):
        # `if global_step >= args.max_train_steps: break`
        if isinstance(node, cst.If) and any(isinstance(one, cst.Break) for one in source.walk(node.body, inner=False)):
            limits += limits_of(source, node.test, counter)
    texts = list(dict.fromkeys(source.code(limit) for limit in limits if dotted(limit) is not None))
    if not texts:
        texts = [one.target for one in variables.assignments if one.target.endswith("max_train_steps")]
    if not texts:
        source.refuse(
            loop.outermost,
            f"the number of optimizer steps was not found: {STEPS_FLAG}.",
        )
    if len(set(texts)) > 1:
        source.refuse(
            limits[-1] if limits else None,
            f"the steps end at {' and at '.join(texts)}: {STEPS_FLAG}.",
        )
    return texts[0]


def limits_of(source: Source, test: cst.BaseExpression, counter: str | None) -> list[cst.BaseExpression]:
    """What a condition compares the counter with, as a lower limit."""
    found = []
    for node in source.walk(test):
        if isinstance(node, cst.Comparison) and counter is not None and source.code(node.left) == counter:
            found += [one.comparator for one in node.comparisons if isinstance(one.operator, cst.GreaterThanEqual)]
    return found


def place_prepare(
    source: Source, variables: Variables, loop: Loop, *, prepared: Prepared, steps: str
) -> cst.BaseStatement:
    """The statement below which `growth.prepare` belongs: the model is prepared, and the steps are known.

    Raises:
        PatchError: The steps change in the loop, or a checkpoint is loaded too early.
    """
    body = body_of(loop)
    statements = list(body.body)  # pyright: ignore[reportAttributeAccessIssue]
    end = statements.index(source.statement(loop.outermost, body))
    place = statements.index(source.statement(prepared.call, body))
    for one in variables.of(steps):
        statement = source.statement(one.node, body)
        if statement is not None and statements.index(statement) >= end:
            source.refuse(
                one.node,
                f"{steps} changes in the training loop or after it.",
            )
        if statement is not None:
            place = max(place, statements.index(statement))
    # The number of epochs, computed from the steps.
    following = statements[place + 1]
    if is_assignment(following) and steps in source.code(following) and "epochs" in source.code(following):
        place += 1
    if place >= end:
        source.refuse(
            prepared.call,
            f"{loop.accelerator}.prepare and the loop are in one statement.",
        )
    for call in calls_of(variables):
        if called(call) == "load_state" and dotted(call.func) == f"{loop.accelerator}.load_state":
            statement = source.statement(call, body)
            if statement is not None and statements.index(statement) <= place:
                source.refuse(
                    call,
                    f"a checkpoint is loaded before the model is prepared, or {steps} known.",
                )
    return statements[place]


def is_assignment(statement: cst.BaseStatement) -> bool:
    """Whether a statement is one assignment."""
    return isinstance(statement, cst.SimpleStatementLine) and isinstance(statement.body[0], cst.Assign)
