"""The map from images to features of any model, of which the training-free scores are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.ntk import condition_number, parameter_grams
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.recorded_calls import RecordedCall


State = dict[str, Tensor]  # parameters and buffers of a module, by name
Features = Callable[[Any, Tensor], Tensor]  # (model, images (N, ...)) -> (N, C); must not mix samples


class FeatureModel(nn.Module):
    """A module whose output is `features(model, images)`, (N, C).

    Args:
        model: Its parameters are this module's, under "model.".
        features: Of the model.
    """

    def __init__(self, model: nn.Module, features: Features) -> None:
        super().__init__()
        self.model = model
        self._features = features

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, ...) -> features (N, C).

        Raises:
            SearchError: The features have another shape.
        """
        out = self._features(self.model, images)
        if out.dim() != 2 or len(out) != len(images):
            raise SearchError(f"features must have shape ({len(images)}, channels), they have {tuple(out.shape)}.")
        return out


@contextmanager
def without_norms(model: nn.Module) -> Iterator[None]:
    """Every LayerNorm inside the model is the identity in this block, as As-ViT measures its curves."""
    swapped = []
    # Lists: modules are replaced while these run.
    parents = list(model.modules())
    try:
        for parent in parents:
            children = list(parent.named_children())
            for name, child in children:
                if isinstance(child, nn.LayerNorm):
                    swapped.append((parent, name, child))
                    setattr(parent, name, nn.Identity())
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


def initial_states(model: nn.Module, initialise: Callable[[], object], repeats: int, seed: int) -> list[State]:
    """Parameters and buffers of `repeats` fresh initialisations; the model and the random state are left as they were.

    Args:
        model: Its own tensors are overwritten by `initialise()` meanwhile.
        initialise: Draws all parameters of `model` anew, from the global random state.
        repeats: Initialisations.
        seed: The r-th one is drawn after `torch.manual_seed(seed + r)`, so all ranks have the same.
    """
    before = copied_state(model)
    states = []
    with torch.random.fork_rng():
        try:
            for repeat in range(repeats):
                torch.manual_seed(seed + repeat)
                initialise()
                states.append(copied_state(model))
        finally:
            model.load_state_dict(before)
    return states


def feature_condition_numbers(
    model: nn.Module, features: Features, images: Tensor, states: Sequence[State] | None = None
) -> list[float]:
    """NTK condition number of the summed features for every initialisation: inf where singular, nan where broken.

    Over the parameters called "weight" that reach the features. Lower is more trainable.
    Source: As-ViT, section 3.2; the Gram matrices are the core's, one forward and one backward an initialisation.

    Args:
        model: Left as it was.
        features: Of the model.
        images: One batch, (N, ...); the paper takes 16.
        states: From `initial_states`; None for the model as it is.

    Returns:
        One condition number for every initialisation.

    Raises:
        SearchError: The features have the wrong shape.
    """
    wrapped = FeatureModel(model, features)
    targets = images.new_zeros(len(images))  # the kernel does not depend on them
    call = RecordedCall((images,), {}, targets)
    before = copied_state(model)
    kappas = []
    try:
        for state in states or [before]:
            model.load_state_dict(state)
            with leaving_no_trace(wrapped):
                _freeze_unreached(wrapped, images[:1])
                grams = parameter_grams(wrapped, call)
            # In the model's order: rounding depends on the order of a sum.
            weights = []
            for name, _ in wrapped.named_parameters():
                if "weight" in name and name in grams:
                    weights.append(grams[name])  # (N, N)
            kernel = torch.stack(weights).sum(0)
            kappas.append(condition_number(kernel))
    finally:
        model.load_state_dict(before)
    return kappas


def copied_state(model: nn.Module) -> State:
    """Parameters and buffers by name, copied."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _freeze_unreached(model: nn.Module, image: Tensor) -> None:
    """Freeze parameters without influence, such as a classifier's: each would cost the core a pass per sample.

    Args:
        model: Gives features.
        image: A batch of one, (1, ...).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = model(image).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients):
        parameter.requires_grad_(gradient is not None)
