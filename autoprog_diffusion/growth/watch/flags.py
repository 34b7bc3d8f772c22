"""Whether a model's parameters are the objects they were, of the type they had, and train as growth has set them."""

from __future__ import annotations

from torch import nn

from ..errors import OrderError


KEPT = (
    "keep the flags around the call (flags = [p.requires_grad for p in model.parameters()] before it, zip them back "
    "after it), or use torch.no_grad(). What shall never train is frozen before GrowthScheduler is constructed."
)


class ParameterFlags:
    """Remembers a model's parameters, their types and `requires_grad`, and finds what somebody else has changed.

    Args:
        model: The bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._named: dict[str, nn.Parameter] = {}
        self._parameters: list[nn.Parameter] = []
        self._flags: list[bool] = []
        self.note()

    def note(self) -> None:
        """Take everything as it is now."""
        self._named = dict(self._model.named_parameters())
        self._parameters = list(self._named.values())
        self._flags = [parameter.requires_grad for parameter in self._parameters]
        self._types = [parameter.dtype for parameter in self._parameters]

    def check_flags(self, when: str) -> None:
        """Refuse to go on where `requires_grad` has changed since `note`; about 30 us for 700 parameters.

        Args:
            when: Since when, for the message.

        Raises:
            OrderError: It names the first parameters, or those added or replaced.
        """
        now = [parameter.requires_grad for parameter in self._parameters]
        if now == self._flags:
            return
        # New adapters freeze their model: they are the cause, and the flags follow from it.
        self.check_parameters()
        changed = [name for name, before, after in zip(self._named, self._flags, now) if before != after]
        thawed = [name for name in changed if self._named[name].requires_grad]
        raise OrderError(
            f"requires_grad of {len(changed)} parameters was changed {when} by something else than GrowthScheduler: "
            f"{len(thawed)} became True, {len(changed) - len(thawed)} became False, first {changed[:3]}. "
            f"model.requires_grad_(...) and enable_adapters() of a validation helper do that: {KEPT}"
        )

    def check_parameters(self) -> None:
        """Refuse to go on where parameters were added or replaced since `note`.

        Raises:
            OrderError: It names the first parameters.
        """
        named = dict(self._model.named_parameters())
        changed = sorted(named.keys() ^ self._named.keys())
        if changed:
            raise OrderError(
                f"the model's parameters changed after growth.prepare, first {changed[:3]}: add adapters "
                "(model.add_adapter) and replace layers before constructing GrowthScheduler."
            )
        replaced = [name for name, parameter in named.items() if parameter is not self._named[name]]
        if replaced:
            raise OrderError(
                f"{len(replaced)} parameters were replaced by others after growth.prepare, first {replaced[:3]}: "
                "neither the optimizer nor growth knows the new ones. Resize embeddings and replace layers before "
                "constructing GrowthScheduler."
            )

    def cast(self) -> str:
        """Describe which parameters have another type than at `note`, and take it as theirs; empty if none has."""
        now = [parameter.dtype for parameter in self._parameters]
        names = [name for name, before, after in zip(self._named, self._types, now) if before != after]
        if not names:
            return ""
        first = names[0]
        before = self._types[list(self._named).index(first)]
        self._types = now
        return f"{len(names)} parameters, first {first!r} from {before} to {self._named[first].dtype}"
