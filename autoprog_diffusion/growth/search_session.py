"""The search inside a run: its registry, the plan before its decisions, the calls it keeps in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .adapter import StageEmbeddingLike
from .backends.ranks import rank, world_size
from .config import GrowthConfig
from .errors import ConfigError
from .fixed import fixed_plan, stage_starts
from .plan import GrowthPlan, Stage
from .state import State
from .units import Layout
from .values import JSON, Resolution


LossFunction = Callable[[nn.Module, Any], Tensor]  # (model, batch) -> loss


class SearchLike(Protocol):
    """The members of a search that a session uses; `search.zero_shot.ZeroShotSearch` is the one we ship."""

    def observe(self, steps_left: int) -> None:
        """Begin to watch the training calls, if a decision is near."""
        ...

    def choose(self, stage: int, current: Stage, resolutions: Sequence[Resolution]) -> tuple[Stage, JSON]:
        """What plan stage `stage` becomes (its start does not count), the same on every rank, and a record of it."""
        ...

    def stop(self) -> None:
        """Remove every hook."""
        ...

    def saved_calls(self) -> list[Any]:
        """The recorded calls, for a checkpoint."""
        ...

    def restore_calls(self, calls: list[Any]) -> None:
        """Continue with the calls of a checkpoint."""
        ...


@dataclass(frozen=True)
class RunParts:
    """The model of a run in the forms a search needs.

    Attributes:
        model: The bare model.
        wrapped: What the training loop calls.
        layout: The model's units.
        embedding: Its stage embedding, if it has one.
        loss_fn: `loss_fn(model, batch) -> loss`, to use instead of replaying what the training loop did.
        batches: For `loss_fn`.
    """

    model: nn.Module
    wrapped: nn.Module
    layout: Layout
    embedding: StageEmbeddingLike | None = None
    loss_fn: LossFunction | None = None
    batches: Iterable[Any] | None = None


SearchFactory = Callable[[GrowthConfig, RunParts], SearchLike]
_SEARCHES: dict[str, SearchFactory] = {}


def register_search(name: str, factory: SearchFactory) -> None:
    """Make a search known under the name that `GrowthConfig.search` gives."""
    _SEARCHES[name] = factory


def check_arguments(config: GrowthConfig, plan: Any, loss_fn: Any, batches: Any) -> None:
    """Refuse arguments of `growth.prepare` that do not go with the configuration's search.

    Raises:
        ConfigError: A plan and a search are both given, or a loss for a search that is off.
    """
    if config.search != "none" and plan is not None:
        raise ConfigError('a plan and a search are both given: use search="none" with a plan.')
    if config.search == "none" and (loss_fn is not None or batches is not None):
        raise ConfigError('loss_fn and batches are for a search, but search="none": set search="zero_shot".')


class SearchSession:
    """Runs a search beside the training: has it watch before a decision, applies decisions, keeps its calls.

    Args:
        config: The run's configuration; without a search in it, the session does nothing.
    """

    def __init__(self, config: GrowthConfig) -> None:
        self._config = config
        self._search: SearchLike | None = None
        self.decisions: list[JSON] = []

    def start(self, plan: GrowthPlan, accelerator: Any, run: RunParts) -> None:
        """Build the search named in the configuration, and have the accelerator checkpoint the calls it records.

        Raises:
            ConfigError: It is not registered.
        """
        name = self._config.search
        if searched_starts(self._config, plan.num_training_steps) is None:
            return
        if name not in _SEARCHES:
            raise ConfigError(f"search={name!r} is not registered; known are {sorted(_SEARCHES)}.")
        self._search = _SEARCHES[name](self._config, run)
        self.observe(plan, 0)
        if accelerator is not None:
            accelerator.register_save_state_pre_hook(self.save_calls)
            accelerator.register_load_state_pre_hook(self.load_calls)

    def observe(self, plan: GrowthPlan, step: int) -> None:
        """Watch the training calls where the next searched stage is near; `step` optimizer steps are done."""
        coming = plan.stage_at(step) + 1
        if self._search is not None and coming < len(plan.stages) - 1:
            self._search.observe(plan.stages[coming].start - step)

    def decide(self, plan: GrowthPlan, stage: int) -> GrowthPlan:
        """The plan with `stage` decided, unless it is the last one, which always trains everything.

        Raises:
            SearchError: The probe failed, on any rank.
        """
        if self._search is None or stage == len(plan.stages) - 1:
            return plan
        current = plan.stages[stage - 1]
        resolutions = next_resolutions(self._config, current.resolution)
        choice, record = self._search.choose(stage, current, resolutions)
        self.decisions.append(record)
        return with_choice(plan, stage, choice)

    def stop(self) -> None:
        """Remove the search's hooks."""
        if self._search is not None:
            self._search.stop()

    @property
    def searches(self) -> bool:
        """Whether a search decides stages of the run."""
        return self._search is not None

    def load(self, state: State) -> None:
        """Take the decisions of a saved growth state; where its run was too short to be searched, search no more."""
        self.decisions = state["decisions"]
        if not state.get("searched", self.searches):
            self.stop()
            self._search = None

    def save_calls(self, models: Any, weights: Any, folder: str) -> None:
        """Write this rank's recorded calls into a checkpoint; an `accelerator.register_save_state_pre_hook` hook."""
        if self._search is None:
            return
        torch.save(self._search.saved_calls(), Path(folder) / f"growth_calls_{rank()}.pt")
        # An earlier run with more ranks may have left files here: delete those of ranks that no longer exist.
        for number, path in _calls_files(folder):
            if rank() == 0 and number >= world_size():
                path.unlink()

    def load_calls(self, models: Any, folder: str) -> None:
        """Read them back; an `accelerator.register_load_state_pre_hook` hook.

        Under another number of ranks, or where the first one saved alone, ranks take the files in turn: the calls of
        a rank are samples of the same training, and scores are averaged over ranks.
        """
        files = _calls_files(folder)
        if files and self._search is not None:
            _, path = files[rank() % len(files)]
            self._search.restore_calls(torch.load(path, weights_only=True, map_location="cpu"))


def warm_blocks(layout: Layout) -> tuple[int, ...]:
    """Blocks that train during the warm-up: none (the output head alone trains), or the last if the head is frozen."""
    return () if layout.outputs.parameters else (len(layout.blocks) - 1,)


def first_plan(
    config: GrowthConfig, layout: Layout, num_training_steps: int, sizes: Sequence[int] | None = None
) -> GrowthPlan:
    """The plan that a run starts with: `fixed_plan`, or with a search the plan before its first decision.

    That one has a short warm-up, stages that repeat the warm-up's blocks until they are decided, then the full model.
    The warm-up trains `warm_blocks` only, so that every candidate contains what trains already.

    A run that is too short to be searched follows the fixed schedule.

    Args:
        config: The run's configuration.
        layout: The model's units.
        num_training_steps: Optimizer steps of the run.
        sizes: Number of parameters of every block.

    Raises:
        ConfigError: There is a search, and `num_stages` is 1: there is nothing to choose.
        PlanError: The run has no step.
    """
    num_blocks = len(layout.blocks)
    starts = searched_starts(config, num_training_steps)
    if starts is None:
        return fixed_plan(config, num_blocks, num_training_steps, sizes)
    resolutions = config.resolutions or (1.0,) * config.num_stages
    blocks = warm_blocks(layout)
    stages = [Stage(start, blocks, resolutions[0]) for start in starts[:-1]]
    last = Stage(starts[-1], tuple(range(num_blocks)), resolutions[-1])
    return GrowthPlan(num_blocks, num_training_steps, (*stages, last))


def searched_starts(config: GrowthConfig, num_training_steps: int) -> list[int] | None:
    """First step of the warm-up, of every stage that a search decides, and of the last, which trains everything.

    A stage joins the one before it where that one would be too short for the search at its end.

    Returns:
        None without a search, or where the run has no room for a single decision.

    Raises:
        ConfigError: There is a search, and `num_stages` is 1.
        PlanError: The run has no step.
    """
    if config.search == "none":
        return None
    if config.num_stages < 2:
        raise ConfigError(f"num_stages={config.num_stages} leaves a search nothing to choose: use at least 2.")
    watched = config.search_batches
    _, *middle, last = stage_starts(config.num_stages, config.boundaries, num_training_steps)
    starts = [0, watched]
    for start in middle:
        if start - starts[-1] >= watched and start < num_training_steps:
            starts.append(start)
    # The last stage needs no decision, and so none at its end either.
    if starts[-1] < last < num_training_steps:
        starts.append(last)
    decides = len(starts) > 2
    return starts if decides else None


def with_choice(plan: GrowthPlan, stage: int, choice: Stage) -> GrowthPlan:
    """The plan with a stage decided; later stages repeat the choice until they are decided too."""
    stages = list(plan.stages)
    for index in range(stage, len(stages) - 1):  # the last one always trains everything
        stages[index] = replace(stages[index], blocks=choice.blocks, resolution=choice.resolution)
    return replace(plan, stages=tuple(stages))


def next_resolutions(config: GrowthConfig, current: Resolution) -> list[Resolution]:
    """Resolutions a search may choose from: the current one and the next of the configuration."""
    # Fractions and pixels are never mixed, and none is smaller than the one before it.
    later = [size for size in config.resolutions or () if size > current]
    return [current, *later[:1]]


def _calls_files(folder: str) -> list[tuple[int, Path]]:
    """The files of recorded calls in a checkpoint, with their ranks, sorted."""
    return sorted((int(path.stem.rpartition("_")[2]), path) for path in Path(folder).glob("growth_calls_*.pt"))
