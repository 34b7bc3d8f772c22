"""The zero-shot search: scores every candidate of the next stage from a few replayed calls, and takes one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backends.ranks import world_size
from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.plan import Stage, fixed_plan
from autoprog_diffusion.growth.search_session import warm_blocks
from autoprog_diffusion.growth.units import Layout

from .candidates import Candidate, list_candidates
from .consensus import agree, all_reduce_bandwidth
from .cost import UnitCosts, count_costs, measure_costs
from .ntk import condition_number, parameter_grams, unit_grams
from .objective import Score, choose
from .probe import leaving_no_trace
from .recorded_calls import CallRecorder, RecordedCall, calls_from_loss
from .zico import mean_gradients, parameter_scores, unit_gain, unit_zico


logger = logging.getLogger(__name__)

PROBE_SAMPLES = 16  # the paper's batch for its NTK score


class ZeroShotSearch:
    """Chooses stages for one run; the scheduler holds one.

    Args:
        config: Candidates, objective and cost.
        model: The bare model.
        wrapped: What the training loop calls.
        layout: The model's units.
        others: Further modules that take part in the forward pass, such as the stage embedding.
        loss_fn: `loss_fn(model, batch) -> loss`, instead of replaying what the training loop did.
        batches: For `loss_fn`.
    """

    def __init__(
        self,
        config: GrowthConfig,
        model: nn.Module,
        wrapped: nn.Module,
        layout: Layout,
        others: Sequence[nn.Module] = (),
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        batches: Iterable[Any] | None = None,
    ) -> None:
        if (loss_fn is None) != (batches is None):
            raise SearchError("loss_fn and batches go together: give both, or neither.")
        self._config, self._model, self._layout, self._others = config, model, layout, tuple(others)
        self._loss_fn, self._batches = loss_fn, batches
        self._recorder = CallRecorder(wrapped, config.search_batches)
        self._known_costs: dict[tuple[int, ...], UnitCosts] = {}
        self._bandwidth: float | None = None

    def observe(self, steps_left: int) -> None:
        """Keep calls while a search is at most `search_batches` optimizer steps away."""
        if steps_left <= self._config.search_batches and self._loss_fn is None and self._needs_calls:
            self._recorder.start()

    def choose(
        self, stage: int, current: Stage, resolutions: Sequence[float | int]
    ) -> tuple[Candidate, dict[str, Any]]:
        """Score the candidates for plan stage `stage` and choose one, the same on every rank.

        Args:
            stage: Index in the plan; stage 0 is the warm-up.
            current: What trains now.
            resolutions: The current one and, where it differs, the next.

        Returns:
            The chosen candidate, and a record of the decision in plain JSON types.

        Raises:
            SearchError: On every rank, where a probe failed on one.
        """
        started = time.perf_counter()
        count, always = len(self._layout.blocks), warm_blocks(self._layout)
        candidates = list_candidates(self._config, count, current.blocks, resolutions, always)
        if self._config.search_objective == "fixed":
            candidates = [self._fixed(stage)]
            index, scores = 0, [Score(candidates[0], 0.0, 0.0, 0.0, 0.0, 0.0)]
        else:
            if self._config.search_cost == "measured" and self._bandwidth is None and world_size() > 1:
                # Here and not while scoring: a rank that fails there must not leave the others in a collective.
                self._bandwidth = all_reduce_bandwidth(next(self._model.parameters()).device)
            index, scores = agree(lambda: self._score(candidates, current.resolution), self._decide(stage))
        self._recorder.stop()
        record = {
            "stage": stage,
            "objective": self._config.search_objective,
            "cost_unit": "seconds" if self._config.search_cost == "measured" else "FLOPs",
            "seconds": time.perf_counter() - started,
            "choice": candidates[index].name,
            "candidates": [score.to_dict() for score in scores],
        }
        _announce(record, scores[index], scores)
        return candidates[index], record

    def stop(self) -> None:
        """Remove the hook that watches the training loop."""
        self._recorder.stop()

    def saved_calls(self) -> list[Any]:
        """The calls kept so far, for a checkpoint between two searches."""
        return self._recorder.saved()

    def restore_calls(self, calls: list[Any]) -> None:
        """Go on with the calls of a checkpoint."""
        self._recorder.restore(calls, next(self._model.parameters()).device)

    @property
    def _needs_calls(self) -> bool:
        return self._config.search_objective not in ("fixed", "random")

    def _decide(self, stage: int) -> Callable[[list[Score]], tuple[int, list[Score]]]:
        return lambda scores: choose(self._config.search_objective, scores, self._config.search_seed + stage)

    def _fixed(self, stage: int) -> Candidate:
        """What the fixed schedule would train in this stage, as a baseline."""
        config = replace(self._config, boundaries=None)
        entry = fixed_plan(config, len(self._layout.blocks), config.num_stages).stages[stage - 1]
        blocks = tuple(sorted({*entry.blocks, *warm_blocks(self._layout)}))
        return Candidate("fixed", blocks, entry.resolution)

    def _score(self, candidates: list[Candidate], now: float | int) -> list[Score]:
        """Scores of all candidates from one probe per resolution, on this rank's data."""
        if not self._needs_calls:
            return [Score(candidate, 0.0, 0.0, 0.0, 0.0) for candidate in candidates]
        with leaving_no_trace(self._model, *self._others, names=self._layout.names):
            calls = self._calls()
            by_resolution = {
                resolution: self._probe(calls, resolution / now, candidates)
                for resolution in dict.fromkeys(c.resolution for c in candidates)
            }
        return [by_resolution[candidate.resolution](candidate) for candidate in candidates]

    def _calls(self) -> list[RecordedCall]:
        if self._loss_fn is not None and self._batches is not None:
            return calls_from_loss(self._model, self._loss_fn, self._batches, self._config.search_batches)
        calls = self._recorder.calls
        if len(calls) < 2:
            raise SearchError(
                f"{len(calls)} training calls were recorded before the search, at least 2 are needed: call the model "
                "that accelerator.prepare returned, and let every stage last at least search_batches steps."
            )
        return calls

    def _probe(
        self, calls: list[RecordedCall], ratio: float, candidates: list[Candidate]
    ) -> Callable[[Candidate], Score]:
        model, layout = self._model, self._layout
        here = [call.resized(ratio) for call in calls]
        reference = None if ratio == 1.0 else mean_gradients(model, calls[::2])
        scores = parameter_scores(model, here, reference)
        zico, gain = unit_zico(model, layout, scores), unit_gain(layout, scores)
        grams = unit_grams(layout, parameter_grams(model, here[-1].first(PROBE_SAMPLES)))
        costs = self._costs(here[-1], [min(c.blocks) for c in candidates if c.blocks])

        def score(candidate: Candidate) -> Score:
            names = trained_units(layout, candidate.blocks)
            parts = [grams[name] for name in names if grams[name].dim() == 2]
            kappa = condition_number(torch.stack(parts).sum(0)) if parts else float("nan")
            total = [sum(table[name] for name in names) for table in (zico, gain)]
            return Score(candidate, costs.step(layout, candidate.blocks), kappa, total[0], total[1])

        return score

    def _costs(self, call: RecordedCall, firsts: list[int]) -> UnitCosts:
        """Costs at the shape of `call`: got once, since they do not change while the model trains."""
        shape = tuple(call.gradient.shape)
        if shape not in self._known_costs:
            if self._config.search_cost == "flops":
                # Candidates are compared with each other, and FLOPs are proportional to the number of samples.
                costs = count_costs(self._model, self._layout, call.first(1), firsts)
            else:
                costs = measure_costs(self._model, self._layout, call, firsts, bandwidth=self._bandwidth)
            self._known_costs[shape] = costs
        return self._known_costs[shape]


def trained_units(layout: Layout, blocks: Iterable[int]) -> list[str]:
    """Names of the units that train when `blocks` do; the inputs only with block 0 (see `growth.units`)."""
    chosen = sorted(blocks)
    names = [layout.blocks[index].name for index in chosen] + [layout.outputs.name]
    return [layout.inputs.name, *names] if chosen and chosen[0] == 0 else names


def _announce(record: dict[str, Any], chosen: Score, scores: list[Score]) -> None:
    broken = [score.candidate.name for score in scores if score.degenerate]
    if broken:
        logger.warning("degenerate scores (singular kernel, nan, or a batch of one), ranked last: %s", broken)
    logger.info(
        "search for stage %d took %.2f s: %s of %d candidates", record["stage"], record["seconds"],
        chosen.candidate.name, len(scores),
    )  # fmt: skip
    if chosen.cost and chosen.cost >= max(score.cost for score in scores):
        logger.info("the search chose the dearest candidate: this stage saves nothing against full fine-tuning.")
