"""Finds the model that grows: follows what the optimizer was built from back to `model.parameters()`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from .loop import is_method, is_prepare
from .parts import Denoiser, Loop
from .source import INNER_SCOPES, Source, called, dotted
from .variables import Variables


TAKEN = ("parameters", "named_parameters")
# Of class names. `Transformer` is also in CLIPTextTransformer and the like, so what is no denoiser is named first.
NO_DENOISER = re.compile(r"Text|Encoder|Decoder|Adapter|Discriminator|CausalLM|Auto|VQ|VAE|EMA|Tokenizer|Vision")
DENOISER = re.compile(r"UNet|Transformer|ControlNet|UVit|Prior|DiT")
# Of variables and attributes, where no class is named.
NO_ROLE = re.compile(r"text|encoder|teacher|target|ema|discriminator|vae|layers|head")
ROLE = re.compile(r"unet|transformer|denoiser|dit$|^dit|prior|controlnet")
MODEL_FLAG = "say which model grows by --model NAME"


def find_denoiser(source: Source, variables: Variables, loop: Loop, wanted: str | None = None) -> Denoiser:
    """Find the model that grows, and the places where the optimizer gets its parameters.

    Args:
        source: The script.
        variables: Of the function that trains.
        loop: The training loop.
        wanted: Variable that the user names; by default it is told from classes and names.

    Raises:
        PatchError: No denoiser is found, or several are, or only a part of one is trained.
    """
    taken = list(parameter_calls(source, variables, loop.optimizer))
    receivers = list(dict.fromkeys(receiver(source, call) for call in taken))
    name = choose(source, variables, loop, receivers=receivers, wanted=wanted)
    own = [call for call in taken if receiver(source, call) == name]
    check_bare(source, variables, name)
    for call in taken:
        if receiver(source, call).startswith(f"{name}."):
            source.refuse(
                call,
                f"the optimizer gets a part of {name}: growth needs all of it, {name}.parameters().",
            )
    if len({called(call) for call in own}) > 1:
        source.refuse(
            own[0],
            f"{name} is given to the optimizer both by parameters() and by named_parameters().",
        )
    named = called(own[0]) == "named_parameters"
    # Growth leaves `named_parameters()` as it is, and what comes before the optimizer may choose what trains.
    first = variables.of(loop.optimizer)[0].node if named else min(own, key=source.place)
    return Denoiser(
        name=name,
        class_name=next(iter(classes_of(source, variables, name)), None),
        parameters=tuple(own),
        companions=tuple(one for one in receivers if one != name),
        named=named,
        first=first,
    )


def parameter_calls(source: Source, variables: Variables, optimizer: str) -> Iterator[cst.Call]:
    """The calls `x.parameters()` and `x.named_parameters()` whose results reach the optimizer.

    Raises:
        PatchError: There is none.
    """
    built = [one for one in variables.of(optimizer) if not is_prepare(one.value)]
    found: dict[cst.Call, None] = {}
    seen: set[str] = {optimizer}
    waiting: list[cst.CSTNode] = [one.value for one in built]
    while waiting:
        node = waiting.pop()
        if isinstance(node, cst.Call) and is_method(node, TAKEN[0]) or is_named(node):
            found[node] = None  # pyright: ignore[reportArgumentType]
        elif isinstance(node, cst.Name):
            if node.value not in seen:
                seen.add(node.value)
                waiting += values_of(variables, node.value)
        elif isinstance(node, cst.Attribute | cst.Arg):
            waiting.append(node.value)  # the name behind the dot, or before the =, is no variable
        elif not isinstance(node, INNER_SCOPES):
            waiting += source.children(node)
    if not found:
        source.refuse(
            built[0].node,
            f"no model.parameters() was found that {optimizer} is built from: it is not clear what trains.",
        )
    yield from sorted(found, key=source.place)


def is_named(node: cst.CSTNode) -> bool:
    """Whether a node is a call of `named_parameters`."""
    return isinstance(node, cst.Call) and is_method(node, TAKEN[1])


def values_of(variables: Variables, name: str) -> list[cst.CSTNode]:
    """What a variable may hold: its values, what is appended to it, and what a loop puts in it."""
    values: list[cst.CSTNode] = [one.value for one in variables.of(name) if not is_loading(one.value)]
    for node in variables.nodes:
        if isinstance(node, cst.Call) and dotted(node.func) in (f"{name}.append", f"{name}.extend"):
            values += node.args
        elif isinstance(node, cst.For) and name in variables.source.names(node.target):
            values.append(node.iter)
    return values


def is_loading(value: cst.BaseExpression) -> bool:
    """Whether a value is a model or a configuration that is loaded: no parameters come out of it by themselves."""
    return isinstance(value, cst.Call) and called(value) in ("from_pretrained", "from_config", "parse_args")


def receiver(source: Source, call: cst.Call) -> str:
    """The model whose parameters a call takes, as it is written."""
    return source.code(call.func.value) if isinstance(call.func, cst.Attribute) else ""


def choose(source: Source, variables: Variables, loop: Loop, *, receivers: list[str], wanted: str | None) -> str:
    """The model that grows, among those that the optimizer trains.

    Raises:
        PatchError: None is a denoiser, or several are.
    """
    place = variables.of(loop.optimizer)[0].node
    known = ", ".join(receivers)
    if wanted is not None:
        if wanted not in receivers:
            source.refuse(
                place,
                f"{loop.optimizer} does not train {wanted!r}: it is built from {known}.",
            )
        return wanted
    chosen = [name for name in receivers if is_denoiser(source, variables, name)]
    if len(chosen) > 1:
        source.refuse(
            place,
            f"{loop.optimizer} trains several denoisers, {', '.join(chosen)}: {MODEL_FLAG}.",
        )
    if chosen:
        return chosen[0]
    classes = {found for name in receivers for found in classes_of(source, variables, name)}
    which = f" (of class {', '.join(sorted(classes))})" if classes else ""
    source.refuse(
        place,
        f"{loop.optimizer} trains {known}{which}, no denoiser that growth is known to divide into blocks: if it is "
        f"one, {MODEL_FLAG}.",
    )


def is_denoiser(source: Source, variables: Variables, name: str) -> bool:
    """Whether a trained variable is a denoiser, by its class or else by its name."""
    if not name.isidentifier():
        return False
    classes = classes_of(source, variables, name)
    if classes:
        return any(DENOISER.search(one) and not NO_DENOISER.search(one) for one in classes)
    roles = [name, *(one.value.attr.value for one in variables.of(name) if isinstance(one.value, cst.Attribute))]
    return any(ROLE.search(role.lower()) and not NO_ROLE.search(role.lower()) for role in roles)


def classes_of(source: Source, variables: Variables, name: str) -> list[str]:
    """Names of the classes that a variable may be of, by what it is constructed with."""
    found = []
    for one in variables.of(name):
        if one.index is not None or not isinstance(one.value, cst.Call):
            continue
        path = (dotted(one.value.func) or "").split(".")
        # Diffusers' classes, and not functions: Class(...), Class.from_pretrained(...), module.Class(...).
        found += [part for part in path if part[:1].isupper()][-1:]
    return list(dict.fromkeys(found))


def check_bare(source: Source, variables: Variables, name: str) -> None:
    """Refuse a model that PEFT wraps.

    Raises:
        PatchError: `get_peft_model` made it.
    """
    for call in (call for one in variables.of(name) for call in source.calls(one.value)):
        if called(call) == "get_peft_model":
            source.refuse(
                call,
                f"get_peft_model wraps {name}: add the adapters to the Diffusers model itself, "
                f"{name}.add_adapter(LoraConfig(...)).",
            )
