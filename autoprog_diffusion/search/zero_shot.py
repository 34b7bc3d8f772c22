"""The zero-shot search: scores every candidate of the next stage from a few replayed calls, and takes one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from autoprog_diffusion.growth.backends.ranks import world_size
from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.fixed import fixed_stages
from autoprog_diffusion.growth.plan import Stage
from autoprog_diffusion.growth.search_session import RunParts, warm_blocks
from autoprog_diffusion.growth.units import trained_units
from autoprog_diffusion.growth.values import JSON, Resolution

from .consensus import agree
from .cost import UnitCosts, all_reduce_bandwidth, count_costs, measure_costs
from .objective import Candidate, Score, choose, list_candidates
from .probe import UnitScores, leaving_no_trace, score_units
from .recorded_calls import CallRecorder, RecordedCall, calls_from_loss
from .zico import mean_gradients


logger = logging.getLogger(__name__)


class ZeroShotSearch:
    """Chooses stages for one run; the scheduler holds one.

    Args:
        config: Candidates, objective and cost.
        run: The model, its units, and the user's own loss, if there is one.

    Raises:
        SearchError: Only one of `loss_fn` and `batches` is given.
    """

    def __init__(self, config: GrowthConfig, run: RunParts) -> None:
        if (run.loss_fn is None) != (run.batches is None):
            raise SearchError("loss_fn and batches go together: give both, or neither.")
        self._config = config
        self._run = run
        self._always = warm_blocks(run.layout)
        # The baselines `fixed` and `random` look at no gradient.
        self._scores = config.search_objective not in ("fixed", "random")
        self._recorder = CallRecorder(run.wrapped, config.search_batches)
        self._known_costs: dict[torch.Size, UnitCosts] = {}  # by the shape of the output
        self._bandwidth: float | None = None

    def observe(self, steps_left: int) -> None:
        """Keep calls while a search is at most `search_batches` optimizer steps away."""
        if steps_left <= self._config.search_batches and self._run.loss_fn is None and self._scores:
            self._recorder.start()

    def choose(self, stage: int, current: Stage, resolutions: Sequence[Resolution]) -> tuple[Stage, JSON]:
        """Score the candidates for plan stage `stage` and choose one, the same on every rank.

        Args:
            stage: Index in the plan; stage 0 is the warm-up.
            current: The stage that ends now.
            resolutions: The current one and, where it differs, the next.

        Returns:
            The stage with the chosen blocks and resolution, and a record of the decision in plain JSON types.

        Raises:
            SearchError: On every rank, where a probe failed on one.
        """
        started = time.perf_counter()
        config = self._config
        objective = config.search_objective
        candidates = self._candidates(stage, current, resolutions)
        measured = config.search_cost == "measured"
        if measured and self._scores and self._bandwidth is None and world_size() > 1:
            # Here and not while scoring: a rank that fails there must not leave the others in a collective.
            self._bandwidth = all_reduce_bandwidth(self._device)
        index, scores = agree(
            lambda: self._score(candidates, current.resolution),
            lambda averaged: choose(objective, averaged, config.search_seed + stage),
        )
        self._recorder.stop()
        chosen = candidates[index]
        record = {
            "stage": stage,
            "objective": objective,
            "cost_unit": "seconds" if measured else "FLOPs",
            "seconds": time.perf_counter() - started,
            "choice": chosen.name,
            "candidates": [score.to_dict() for score in scores],
        }
        _announce(record, scores[index], scores)
        return replace(current, blocks=chosen.blocks, resolution=chosen.resolution), record

    def stop(self) -> None:
        """Remove the hook that watches the training loop."""
        self._recorder.stop()

    def saved_calls(self) -> list[Any]:
        """The calls kept so far, for a checkpoint between two searches."""
        return self._recorder.saved()

    def restore_calls(self, calls: list[Any]) -> None:
        """Go on with the calls of a checkpoint."""
        self._recorder.restore(calls, self._device)

    @property
    def _device(self) -> torch.device:
        return next(self._run.model.parameters()).device

    def _candidates(self, stage: int, current: Stage, resolutions: Sequence[Resolution]) -> list[Candidate]:
        """The candidates for a stage, the same on every rank."""
        config = self._config
        num_blocks = len(self._run.layout.blocks)
        if config.search_objective != "fixed":
            return list_candidates(config, num_blocks, current.blocks, resolutions, self._always)
        # A baseline: the only candidate is what the fixed schedule would train. Where its stages begin plays no part.
        schedule = fixed_stages(config, num_blocks, range(config.num_stages))
        fixed = schedule[stage - 1]
        blocks = sorted({*fixed.blocks, *self._always})
        return [Candidate("fixed", tuple(blocks), fixed.resolution)]

    def _score(self, candidates: list[Candidate], now: Resolution) -> list[Score]:
        """Scores of all candidates from one probe per resolution, on this rank's data."""
        if not self._scores:
            return list(map(Score, candidates))
        embedding: Any = self._run.embedding
        others = [] if embedding is None else [embedding]
        layout = self._run.layout
        firsts = {min(candidate.blocks) for candidate in candidates if candidate.blocks}
        probes = {}  # resolution -> scores and costs of all units
        scores = []
        with leaving_no_trace(self._run.model, *others, names=layout.names):
            calls = self._calls()
            for candidate in candidates:
                resolution = candidate.resolution
                if resolution not in probes:
                    probes[resolution] = self._probe(calls, resolution / now, firsts)
                units, costs = probes[resolution]
                trained = trained_units(layout, candidate.blocks)
                cost = costs.step(layout, candidate.blocks)
                scores.append(units.score(candidate, trained, cost))
        return scores

    def _calls(self) -> list[RecordedCall]:
        """The mini-batches to probe with: those of the user's own loss, or those recorded from the training loop."""
        run = self._run
        count = self._config.search_batches
        if run.loss_fn is not None and run.batches is not None:
            return calls_from_loss(
                run.model,
                loss_fn=run.loss_fn,
                batches=run.batches,
                count=count,
            )
        calls = list(self._recorder.calls)
        if len(calls) < 2:
            raise SearchError(
                f"{len(calls)} training calls were recorded before the search, at least 2 are needed: call the model "
                "that accelerator.prepare returned, and let every stage last at least search_batches steps."
            )
        return calls

    def _probe(self, calls: list[RecordedCall], ratio: float, firsts: set[int]) -> tuple[UnitScores, UnitCosts]:
        """Scores and costs of all units at one resolution, `ratio` times that of the calls."""
        model = self._run.model
        layout = self._run.layout
        resized = [call.resized(ratio) for call in calls]
        reference = None
        if ratio != 1.0:
            # A gradient at another size is worth what it does for the loss at the size that was seen.
            reference = mean_gradients(model, calls[::2])
        units = score_units(
            model,
            layout=layout,
            calls=resized,
            trainable=layout.names,
            reference=reference,
        )
        return units, self._costs(resized[-1], firsts)

    def _costs(self, call: RecordedCall, firsts: set[int]) -> UnitCosts:
        """Costs at the shape of `call`; determined once, since they do not change while the model trains."""
        costs = self._known_costs.get(call.gradient.shape)
        if costs is not None:
            return costs
        run = self._run
        if self._config.search_cost == "flops":
            # Candidates are compared with each other, and FLOPs are proportional to the number of samples.
            costs = count_costs(
                run.model,
                layout=run.layout,
                call=call.first(1),
                firsts=firsts,
            )
        else:
            costs = measure_costs(
                run.model,
                layout=run.layout,
                call=call,
                firsts=firsts,
                bandwidth=self._bandwidth,
            )
        self._known_costs[call.gradient.shape] = costs
        return costs


def _announce(record: JSON, chosen: Score, scores: list[Score]) -> None:
    """Log the choice, and what is suspicious about the scores."""
    degenerate = [score.candidate.name for score in scores if score.degenerate]
    highest = max(score.cost for score in scores)
    if degenerate:
        logger.warning("degenerate scores (singular kernel, nan, or a batch of one), ranked last: %s", degenerate)
    logger.info("search for stage %d took %.2f s: %s", record["stage"], record["seconds"], record["choice"])
    if chosen.cost and chosen.cost >= highest:
        logger.info("the search chose the most expensive candidate: this stage saves nothing.")
