"""The probe of a model in the middle of its training: scores of every unit, without leaving a trace."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autoprog_diffusion.growth.units import Layout, Unit, set_trainable

from .ntk import condition_number, parameter_grams, sum_grams, unit_grams
from .objective import Candidate, Score
from .recorded_calls import NamedTensors, RecordedCall
from .zico import Values, parameter_scores, unit_gain, unit_zico


PROBE_SAMPLES = 16  # AutoProg-Zero's batch for its NTK score


@dataclass(frozen=True)
class UnitScores:
    """Scores of every unit, by its name; those of a candidate are sums over the units that train.

    Attributes:
        grams: Gram matrices (N, N) of the per-sample gradients; a scalar zero for a unit without weights.
        zico: ZiCo.
        gain: Expected loss decrease of a preconditioned step.
    """

    grams: NamedTensors
    zico: Values
    gain: Values

    def score(self, candidate: Candidate, units: Iterable[Unit], cost: float) -> Score:
        """Score a candidate that trains `units`, and whose step has this cost."""
        names = [unit.name for unit in units]
        return Score(
            candidate,
            cost=cost,
            kappa=condition_number(sum_grams(self.grams, names)),
            zico=sum(map(self.zico.__getitem__, names)),
            gain=sum(map(self.gain.__getitem__, names)),
        )


def score_units(
    model: nn.Module,
    layout: Layout,
    calls: Sequence[RecordedCall],
    trainable: Iterable[str],
    reference: NamedTensors | None = None,
) -> UnitScores:
    """Score every unit, from the gradients of some recorded calls. Run it in `leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        calls: At least two mini-batches.
        trainable: Names of the parameters that may ever train.
        reference: Mean gradients, by name, at the resolution that was seen (see `zico.parameter_scores`).

    Raises:
        SearchError: There are fewer than two calls.
    """
    scores = parameter_scores(model, calls, reference)
    # Only weights count in the kernel. A bias or a position embedding would take one pass per sample.
    weights = {name for name in trainable if "weight" in name}
    set_trainable(model, weights)
    grams = parameter_grams(model, calls[-1].first(PROBE_SAMPLES)) if weights else {}
    return UnitScores(
        grams=unit_grams(layout, grams),
        zico=unit_zico(model, layout, scores),
        gain=unit_gain(layout, scores),
    )


@contextmanager
def leaving_no_trace(model: nn.Module, *others: nn.Module, names: Container[str] | None = None) -> Iterator[None]:
    """Allow forward and backward passes with every growing parameter trainable, then put everything back.

    Restored, also after an error: gradients (the same tensors, not recomputed), `requires_grad`, training modes and
    the random states of all devices. Inside, modules are in evaluation mode, so that dropout adds no noise to a score.
    Optimizers and averages are never touched. A hook is removed by the code that adds it.

    Args:
        model: The bare model.
        others: Further modules whose parameters take part, such as the stage embedding.
        names: Names of the model's parameters that may ever train; `None` for all of them.
    """
    everything = nn.ModuleList([model, *others])
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in everything.parameters()]
    modes = [(module, module.training) for module in everything.modules()]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            everything.eval()
            for parameter in everything.parameters():
                parameter.grad = None
            for name, parameter in model.named_parameters():
                trains = parameter.is_floating_point() and (names is None or name in names)
                parameter.requires_grad_(trains)
            yield
    finally:
        for parameter, trained, gradient in parameters:
            parameter.requires_grad_(trained)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
