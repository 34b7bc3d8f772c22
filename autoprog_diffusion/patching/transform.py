"""Adds growth's lines to a script that is understood; all other bytes stay as they are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libcst as cst

from .options import DEFAULT, Options, config_of, takes_average
from .parts import Training
from .source import Source


IMPORT = "from autoprog_diffusion import GrowthConfig, GrowthScheduler"
COMMENTS = {
    "import": "trains the model in stages",
    "construct": "its stages; built before the optimizer",
    "parameters": "of the model, and of the stage embedding",
    "prepare": "enters the first stage",
    "average": "frozen ones are averaged as well",
    "step": "once per optimizer step, before saving",
    "folded": "a plain model, as it would be at the end",
    "fold": "leaves a plain model",
    "averaged": "of the weights, wider as the run goes on",
    "average step": "before growth.step",
    "copy": "the average is the result",
}


@dataclass
class Edits:
    """Changes to a tree, by the nodes they are at.

    Attributes:
        before: Statements to add above one.
        after: Statements to add below one.
        begin: Statements to add at the beginning of a block.
        replace: Expressions to put in place of others.
        wrap: Statements to put inside of a `with`, and its head.
        comment: Comments for the end of a statement's line, or behind the comma of an argument.
    """

    before: dict[cst.CSTNode, list[str]] = field(default_factory=dict)
    after: dict[cst.CSTNode, list[str]] = field(default_factory=dict)
    begin: dict[cst.CSTNode, list[str]] = field(default_factory=dict)
    replace: dict[cst.CSTNode, str] = field(default_factory=dict)
    wrap: dict[cst.CSTNode, str] = field(default_factory=dict)
    comment: dict[cst.CSTNode, str] = field(default_factory=dict)


def patch(training: Training, options: Options = DEFAULT) -> bytes:
    """The script with growth plugged in.

    Args:
        training: What `analyse` found.
        options: How the lines are written.

    Returns:
        The new content of the file, in its own encoding.

    Raises:
        PatchError: An average was asked for, and something in the script stands against it.
    """
    source = training.source
    edits = edits_of(training, options)
    return source.module.visit(Patcher(source.module, edits)).bytes


def edits_of(training: Training, options: Options) -> Edits:
    """The changes that a training script needs.

    Raises:
        PatchError: An average was asked for, and something in the script stands against it.
    """

    def written(code: str, kind: str) -> str:
        return f"{code}  # {COMMENTS[kind]}" if options.comments else code

    model = training.prepared.name
    accelerator = training.loop.accelerator
    averaged = takes_average(training, options)
    build = f"growth = GrowthScheduler({training.denoiser.name}, {config_of(training, options)}, {accelerator})"
    prepared = [written(f"growth.prepare({model}, num_training_steps={training.steps})", "prepare")]
    stepped = [written("growth.step()", "step")]
    folded = [written(f"growth.fold({model})", "fold")]
    saved = f"growth.folded({model})"
    if averaged:
        average = f"average = PowerAverage({model}, growth=growth, accelerator={accelerator})"
        prepared.append(written(average, "averaged"))
        stepped.insert(0, written("average.step()", "average step"))
        folded.insert(0, written("average.copy_to()", "copy"))
        saved = f"average.in_place(), {saved}"
    edits = Edits()
    edits.after[training.import_after] = [written(IMPORT + (", PowerAverage" if averaged else ""), "import")]
    edits.before[training.construct_before] = [written(build, "construct")]
    edits.after[training.prepare_after] = prepared
    if training.step_after is None:
        edits.begin[training.synced.body] = stepped
    else:
        edits.after[training.step_after] = stepped
    for statement in training.saves_in_loop:
        edits.wrap[statement] = written(f"with {saved}:", "folded")
    if training.fold_after is not None:
        edits.after[training.fold_after] = folded
    replace_arguments(edits, training)
    if not options.comments:
        edits.comment.clear()
    return edits


def replace_arguments(edits: Edits, training: Training) -> None:
    """Give growth's parameters to the optimizer and to averages."""
    source = training.source
    if not training.denoiser.named:
        for call in training.denoiser.parameters:
            edits.replace[call] = "growth.parameters()"
            edits.comment[place_of_comment(source, call)] = "parameters"
    for average in training.averages:
        chosen = "" if average.whole else source.code(average.argument.value)
        edits.replace[average.argument.value] = f"growth.ema_parameters({chosen})"
        edits.comment[place_of_comment(source, average.argument)] = "average"


def place_of_comment(source: Source, node: cst.CSTNode) -> cst.CSTNode:
    """The argument that a changed expression is, where it has lines of its own, or else the statement it is in."""
    argument = node if isinstance(node, cst.Arg) else source.parent(node)
    if isinstance(argument, cst.Arg) and isinstance(argument.comma, cst.Comma):
        if isinstance(argument.comma.whitespace_after, cst.ParenthesizedWhitespace):
            return argument
    return next(above for above in source.ancestors(node) if isinstance(above, cst.BaseStatement))


class Patcher(cst.CSTTransformer):
    """Makes the changes, each at its node.

    Args:
        module: The script; new statements get its indentation.
        edits: The changes.
    """

    def __init__(self, module: cst.Module, edits: Edits) -> None:
        super().__init__()
        self._config = module.config_for_parsing
        self._edits = edits

    def on_leave(self, original_node: cst.CSTNode, updated_node: cst.CSTNode) -> Any:
        edits = self._edits
        node: cst.CSTNode = updated_node
        if original_node in edits.replace:
            return cst.parse_expression(edits.replace[original_node])
        if original_node in edits.comment:
            node = commented(node, COMMENTS[edits.comment[original_node]])
        if original_node in edits.begin and isinstance(node, cst.IndentedBlock):
            node = node.with_changes(body=[*self._statements(edits.begin[original_node]), *node.body])
        if original_node in edits.wrap:
            node = self._wrapped(node, edits.wrap[original_node])
        around: list[cst.CSTNode] = [node]
        if original_node in edits.before:
            # Blank lines and comments above stay above.
            first, *others = self._statements(edits.before[original_node])
            around = [
                first.with_changes(leading_lines=node.leading_lines),  # pyright: ignore[reportAttributeAccessIssue]
                *others,
                node.with_changes(leading_lines=[]),
            ]
        if original_node in edits.after:
            around += self._statements(edits.after[original_node])
        return node if len(around) == 1 else cst.FlattenSentinel(around)

    def _statements(self, lines: list[str]) -> list[cst.BaseStatement]:
        return [cst.parse_statement(code, config=self._config) for code in lines]  # pyright: ignore[reportReturnType]

    def _wrapped(self, node: cst.CSTNode, head: str) -> cst.CSTNode:
        """A statement inside of a `with` block."""
        block = cst.parse_statement(f"{head}\n    pass\n", config=self._config)
        moved = node.with_changes(leading_lines=[])
        body = block.body.with_changes(body=[moved], indent=None)  # pyright: ignore[reportAttributeAccessIssue]
        return block.with_changes(
            body=body,
            leading_lines=node.leading_lines,  # pyright: ignore[reportAttributeAccessIssue]
        )


def commented(node: cst.CSTNode, text: str) -> cst.CSTNode:
    """A statement of one line, or an argument in a line of its own, with a comment, unless it has one already."""
    comment = cst.Comment(f"# {text}")
    space = cst.SimpleWhitespace("  ")
    if isinstance(node, cst.SimpleStatementLine):
        if node.trailing_whitespace.comment is not None:
            return node
        return node.with_changes(
            trailing_whitespace=node.trailing_whitespace.with_changes(whitespace=space, comment=comment)
        )
    if isinstance(node, cst.Arg) and isinstance(node.comma, cst.Comma):
        after = node.comma.whitespace_after
        if isinstance(after, cst.ParenthesizedWhitespace) and after.first_line.comment is None:
            line = after.first_line.with_changes(whitespace=space, comment=comment)
            return node.with_changes(
                comma=node.comma.with_changes(whitespace_after=after.with_changes(first_line=line))
            )
    return node


def unified_diff(source: Source, new: bytes, *, context: int = 3) -> str:
    """The change as a diff that `patch -p1` applies in the folder that the script's path starts from."""
    encoding = source.module.encoding
    before = source.data.decode(encoding)
    here = Path.cwd()
    path = source.path.resolve()
    name = (path.relative_to(here) if path.is_relative_to(here) else source.path).as_posix().lstrip("/")
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        new.decode(encoding).splitlines(keepends=True),
        f"a/{name}",
        f"b/{name}",
        n=context,
    )
    # A last line without an end would run into the next one.
    return "".join(
        line if line.endswith(("\n", "\r")) else line + "\n\\ No newline at end of file\n" for line in lines
    )
