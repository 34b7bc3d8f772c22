"""Finds where lines belong before and in the loop: what `accelerator.prepare` returns, the steps, the averages."""

from __future__ import annotations

import libcst as cst

from .parts import Average, Denoiser, Loop, Prepared
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
        source.refuse(found[-1], f"the prepared model is called {' or '.join(sorted(names))}: use one name.")
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
    counted = [(block, *one) for block in found for one in counters(source, block)]
    if len(counted) > 1:
        source.refuse(counted[1][1], f"a second counter beside {counted[0][2]}: which one counts optimizer steps?")
    if not counted:
        return found[0], None, None
    return counted[0]


def counters(source: Source, block: cst.If) -> list[tuple[cst.BaseStatement, str]]:
    """The statements of a block that count one up, with what they count; not those inside of its statements."""
    if not isinstance(block.body, cst.IndentedBlock):
        source.refuse(block, "the body of this `if` is in the same line: put it below.")
    found = []
    for statement in block.body.body:
        for node in source.children(statement):
            if isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign):
                if source.code(node.value) == "1":
                    found.append((statement, source.code(node.target)))
    return found


def place_step(
    source: Source,
    synced: cst.If,
    counted: cst.BaseStatement | None,
    *,
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
            source.refuse(one.argument, f"{one.name} is stepped outside of `if {source.code(synced.test)}:`.")
    earliest = [body.index(statement) for statement in inside if isinstance(statement, cst.BaseStatement)]
    if counted is not None:
        earliest.append(body.index(counted))
    saving = [source.statement(call, synced.body) for call in saves]
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
                source.refuse(call, f"{average} is stepped with {argument}, and built from something else.")
            found.append(Average(average, call.args[0], whole=False))
    return found


def is_average(value: cst.BaseExpression) -> bool:
    """Whether a value is a new `EMAModel`."""
    return isinstance(value, cst.Call) and called(value) == "EMAModel"


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
        source.refuse(loop.outermost, f"the number of optimizer steps was not found: {STEPS_FLAG}.")
    if len(set(texts)) > 1:
        source.refuse(limits[-1] if limits else None, f"the steps end at {' and at '.join(texts)}: {STEPS_FLAG}.")
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
            source.refuse(one.node, f"{steps} changes in the training loop or after it.")
        if statement is not None:
            place = max(place, statements.index(statement))
    # The number of epochs, computed from the steps.
    following = statements[place + 1]
    if is_assignment(following) and steps in source.code(following) and "epochs" in source.code(following):
        place += 1
    if place >= end:
        source.refuse(prepared.call, f"{loop.accelerator}.prepare and the loop are in one statement.")
    for call in calls_of(variables):
        if called(call) == "load_state" and dotted(call.func) == f"{loop.accelerator}.load_state":
            statement = source.statement(call, body)
            if statement is not None and statements.index(statement) <= place:
                source.refuse(call, f"a checkpoint is loaded before the model is prepared, or {steps} known.")
    return statements[place]


def is_assignment(statement: cst.BaseStatement) -> bool:
    """Whether a statement is one assignment."""
    return isinstance(statement, cst.SimpleStatementLine) and isinstance(statement.body[0], cst.Assign)


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
                source.refuse(opens(source, node), reason)
    for call in calls_of(variables):
        late = source.place(call) > start and source.line(call) <= end
        if late and called(call) in TAMPERING and isinstance(call.func, cst.Attribute):
            if not source.names(call.func.value).isdisjoint(names):
                source.refuse(call, f"{called(call)}(): {reason}")
    for one in variables.assignments:
        late = start < source.place(one.node) and source.line(one.node) <= end
        if not late:
            continue
        allowed = (f"{loop.accelerator}.prepare", "torch.compile")
        inside = isinstance(one.value, cst.Call) and dotted(one.value.func) in allowed
        if one.target in names and not inside:
            source.refuse(one.node, f"{one.target} becomes something else after the optimizer is built from it.")
        if is_average(one.value) and f"{denoiser.name}.parameters()" in source.code(one.value):
            source.refuse(one.node, f"the average is built after {loop.optimizer}: build it before.")


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
