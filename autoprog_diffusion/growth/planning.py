"""Where a run's plan comes from: a user's, the configuration's, or that of the run that is resumed, made longer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .backends.ranks import rank
from .config import GrowthConfig
from .errors import OrderError, StateError
from .plan import GrowthPlan, check_plan_fits
from .search_session import first_plan
from .state import NamedTensors, State, check_state
from .units import Layout
from .values import JSON


logger = logging.getLogger(__name__)

# Fields of `GrowthConfig` by what a resume does with them. The plan shows those of the first kind, which a plan of the
# user's own replaces; stage_embedding shows in what the checkpoint holds.
SHOWN = (
    "num_stages", "order", "min_trainable", "direction", "resolutions", "accumulations", "boundaries", "sweeps",
    "window_share", "search", "search_batches", "stage_embedding",
)  # fmt: skip
# These change what trains, or how, and must be the same.
KEPT = ("embedders_always", "resolution_multiple", "rewarm_steps")
KEPT_WITH_EMBEDDING = ("stage_embedding_init", "stage_dropout", "ema_decay")
KEPT_WITH_SEARCH = ("search_objective", "search_cost", "search_orders", "search_candidates", "search_seed")
KEPT_WITH_WINDOWS = ("window_state",)
# Where and how memory is spent is another matter.
FREE = ("frozen_dtype", "checkpointing", "memory_gb")


class Planner:
    """Makes the plan of one run.

    Args:
        config: The run's configuration.
        layout: The model's units.
        sizes: Number of parameters of every block.
        embedded: Whether there is a stage embedding, whose table has a row for every stage of the configuration.
    """

    def __init__(self, config: GrowthConfig, layout: Layout, sizes: Sequence[int], *, embedded: bool) -> None:
        self._planned: GrowthPlan | None = None
        self._config = config
        self._layout = layout
        self._sizes = sizes
        self._rows = config.plan_stages if embedded else None
        self._given = False

    @property
    def planned(self) -> GrowthPlan:
        """The plan that the run was prepared with.

        Raises:
            OrderError: It was not.
        """
        if self._planned is None:
            raise OrderError("call growth.prepare(model, num_training_steps=...) first, after accelerator.prepare.")
        return self._planned

    def state(self) -> JSON:
        """What a checkpoint holds of it: the plan that the run was prepared with, and the settings no plan shows."""
        return {"planned": self.planned.to_dict(), "settings": self._settings()}

    def prepare(self, given: GrowthPlan | None, num_training_steps: int) -> GrowthPlan:
        """The plan to begin with.

        Args:
            given: The user's own plan; None for the configuration's, whose stages are merged where they do not fit.
            num_training_steps: Optimizer steps of the run.

        Raises:
            PlanError: The user's plan does not fit the model or the number of steps, or there is no step.
            ConfigError: There is a search, and `num_stages` is 1.
        """
        if given is None:
            plan = self._remake(num_training_steps)
            announce_merges(plan, self._config.plan_stages)
        else:
            plan = given
            names = [unit.name for unit in self._layout.blocks]
            check_plan_fits(plan, names, num_training_steps, self._rows)
        self._planned = plan
        self._given = given is not None
        return plan

    def resume(self, state: State, model: JSON, embedding: NamedTensors | None) -> GrowthPlan:
        """The plan that a prepared run goes on with whose checkpoint holds `state`.

        Args:
            state: The saved growth state.
            model: This model's `fingerprint`.
            embedding: State of this run's stage embedding.

        Raises:
            StateError: The checkpoint is of another version, model or stage embedding, or it follows other stages than
                this run's settings, or its own plan; or one of those settings differs that no plan shows.
        """
        ours = self.planned
        check_state(state, model, embedding=embedding)
        # Older checkpoints hold no settings.
        check_settings(state.get("settings", {}), self._settings())
        if self._given:
            check_same_stages(state, ours)
            if _agrees(state, ours):
                return ours
        else:
            check_same_settings(state, self._remake)
        shortest = self._config.search_batches if state.get("searched") else 1
        return extended_plan(state, ours.num_training_steps, shortest=shortest)

    def _settings(self) -> JSON:
        """The settings that must be equal in a resumed run, although its plan may not show them."""
        names = [*KEPT]
        if self._rows is not None:
            names += KEPT_WITH_EMBEDDING
        if self._config.search != "none":
            names += KEPT_WITH_SEARCH
        if self._config.direction == "window":
            names += KEPT_WITH_WINDOWS
        values = self._config.to_dict()
        return {name: values[name] for name in names}

    def _remake(self, num_training_steps: int) -> GrowthPlan:
        """The plan of this run's settings for another number of steps."""
        return first_plan(self._config, self._layout, num_training_steps, self._sizes)


def extended_plan(state: State, num_training_steps: int, *, shortest: int = 1) -> GrowthPlan:
    """The plan of a saved growth state, for a run that is to have `num_training_steps` steps.

    Diffusers' scripts take one more step if they resume after their last one, so fewer steps than are done are not
    refused: nothing is left to come then.

    Args:
        state: The saved growth state.
        num_training_steps: Optimizer steps of the whole run, those done included.
        shortest: Steps between two stages to come.
    """
    saved = GrowthPlan.from_dict(state["plan"])
    done = state["step"]
    if num_training_steps == saved.num_training_steps:
        return saved
    plan = saved.extended(max(num_training_steps, done), done, shortest=shortest)
    starts = [stage.start for stage in plan.stages]
    if rank() == 0:
        logger.warning(
            f"resumed at step {done} with {num_training_steps} steps instead of {saved.num_training_steps}: "
            f"the {len(starts)} stages begin at steps {starts}"
        )
    return plan


def check_settings(saved: JSON, ours: JSON) -> None:
    """Refuse settings that are not those of the checkpoint.

    Args:
        saved: Settings by name, those of the checkpoint.
        ours: Those of this run.

    Raises:
        StateError: One that both have differs; the message names it and both values.
    """
    for name, value in ours.items():
        before = saved.get(name, value)
        if before != value:
            raise StateError(
                f"the checkpoint's run had {name}={before!r}, this one has {name}={value!r}: resume with the same "
                "value. What may change is where and how memory is spent: " + ", ".join(FREE) + "."
            )


def check_same_settings(state: State, remake: Callable[[int], GrowthPlan]) -> None:
    """Refuse a state whose plan other settings made.

    Args:
        state: The saved growth state.
        remake: Makes the plan of this run's settings for another number of steps.

    Raises:
        StateError: It makes another one for as many steps as the checkpoint's run was prepared with.
    """
    # States written before runs could be extended: what was followed is what was planned, but for a search's choices.
    decided = "planned" not in state
    planned = state.get("planned", state["plan"])
    ours = remake(planned["num_training_steps"]).to_dict()
    if decided and state["decisions"]:
        planned = _starts_only(planned)
        ours = _starts_only(ours)
    if planned != ours:
        raise StateError(
            f"the checkpoint follows another growth plan ({_differences(planned, ours)}): resume with the same growth "
            "settings, or with the old run's plan if it was given one. The number of steps may be another one."
        )


def check_same_stages(state: State, ours: GrowthPlan) -> None:
    """Refuse a state that follows other stages than a user's plan; with another number of steps, starts may differ.

    Raises:
        StateError: The stages differ.
    """
    saved = state["plan"]
    planned = state.get("planned", saved)
    now = ours.to_dict()
    if now in (saved, planned):
        return
    longer = saved["num_training_steps"] != ours.num_training_steps
    if longer and _without_starts(saved) == _without_starts(now):
        return
    raise StateError(
        f"the checkpoint follows another growth plan ({_differences(saved, now)}): resume with the plan of the old "
        "run. For another number of steps pass the old plan's rescaled(steps); what is past stays."
    )


def _agrees(state: State, ours: GrowthPlan) -> bool:
    """Whether a user's plan leaves every stage as it was that has begun."""
    saved = GrowthPlan.from_dict(state["plan"])
    current = saved.stage_at(state["step"])
    begun = saved.stages[: current + 1]
    return ours.stages[: current + 1] == begun and ours.stage_at(state["step"]) == current


def announce_merges(plan: GrowthPlan, wanted: int) -> None:
    """Say in one line which stages are left, if the configuration has more of them (`wanted`)."""
    if len(plan.stages) == wanted or rank() != 0:
        return
    starts = [stage.start for stage in plan.stages]
    blocks = [len(stage.blocks) for stage in plan.stages]
    logger.warning(
        f"{wanted} stages do not fit {plan.num_training_steps} steps and {plan.num_blocks} blocks: {len(starts)} are "
        f"left, which begin at steps {starts} and train {blocks} blocks"
    )


def _differences(theirs: JSON, ours: JSON) -> str:
    """What differs between two plans, in words."""
    changes = [f"{key} was {theirs.get(key)}, now {ours[key]}" for key in ours if theirs.get(key) != ours[key]]
    return "; ".join(changes)


def _starts_only(plan: JSON) -> JSON:
    """The plan with nothing left of its stages but their starts."""
    return {**plan, "stages": [stage["start"] for stage in plan["stages"]]}


def _without_starts(plan: JSON) -> JSON:
    """The stages of a plan, whenever they begin."""
    stages = [{**stage, "start": 0} for stage in plan["stages"]]
    return {"num_blocks": plan["num_blocks"], "stages": stages}
