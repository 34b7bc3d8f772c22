"""`Run`: what the files in the output folder of a run tell of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprog_diffusion.command_line import script_name
from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE, PLANNED_FILE, RUN_FILE
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.values import JSON

from .files import check_is_run, measured_folder, read_json, read_optional, understood
from .held_out import HELD_OUT_FILE, HeldOut
from .pictures import Picture, find_pictures
from .stages import Entered, Planned, StageCost
from .starts import DataSource, Start, read_source, read_starts


PLAN_FILE = "growth_plan.json"
MOST_BLOCKS = 10_000
# Columns of metrics.json that the report draws.
COLUMNS = ("loss", "seconds", "cpu_seconds", "trainable", "resolution", "memory")


@dataclass(frozen=True)
class Run:
    """A run, as its files tell it.

    Attributes:
        folder: Its output folder.
        name: Its name in the report.
        starts: Every start, the first one first; at least one.
        plan: Its plan.
        blocks: Names of the model's blocks in forward order; a number where no file has the name.
        entered: Stages that it has entered, in order.
        stages: Summary of every stage and search so far.
        planned: What was predicted of the stages; none where nobody asked.
        decisions: Choices of a search, as growth.json has them.
        rows: Column -> one value per optimizer step; empty for a run of an older version.
        validations: Accuracies on validation images, if they were measured.
        held_out: The losses on held-out images, if they were measured.
        pictures: Grids of drawn pictures, in order.
        data: What was found in the data.
        saving: Cost of full training divided by that of the run, by `time` and `flops`, where known.
        seconds: Wall time of the phases of the last start, by name.
        device: Name of the GPU, or cpu.
        measured: Folder that the measurements are from: the run's own once it has ended, or a checkpoint; None before.
    """

    folder: Path
    name: str
    starts: tuple[Start, ...]
    plan: GrowthPlan | None
    blocks: tuple[str, ...]
    entered: tuple[Entered, ...]
    stages: tuple[StageCost, ...]
    planned: tuple[Planned, ...]
    decisions: tuple[JSON, ...]
    rows: dict[str, list[float]]
    validations: tuple[dict[str, float], ...]
    held_out: HeldOut | None
    pictures: tuple[Picture, ...]
    data: tuple[DataSource, ...]
    saving: dict[str, float | None]
    seconds: dict[str, float]
    device: str
    measured: Path | None

    @property
    def start(self) -> Start:
        """The last start."""
        return self.starts[-1]

    @property
    def steps_done(self) -> int:
        """Optimizer steps done, as far as they were measured."""
        return sum(stage.steps for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        planned = None if self.plan is None else self.plan.num_training_steps
        return self.start.steps or planned or self.steps_done

    @property
    def ended(self) -> bool:
        """Whether the run has ended, and left its result."""
        return self.measured == self.folder

    @property
    def script(self) -> str:
        """Name of the script."""
        return script_name(self.start.command)

    @property
    def model(self) -> str:
        """Name of the model, as the command line gave it."""
        return self.given_model or f"the default model of {self.script}"

    @property
    def given_model(self) -> str | None:
        """Name of the model on the command line, if there was one."""
        settings = self.start.settings
        name = settings.get("pretrained_model_name_or_path") or settings.get("model")
        return str(name) if name else None

    @property
    def num_blocks(self) -> int:
        """Number of the model's blocks; 0 where no file tells it."""
        return 0 if self.plan is None else self.plan.num_blocks

    def trains_model_of(self, other: Run) -> bool:
        """Whether two runs trained the same model: its class, number of blocks, and the last part of its name."""
        classes = {self.start.model_class, other.start.model_class} - {""}  # older versions do not tell it
        # A folder may have been given by another path.
        names = {Path(run.given_model or "").name for run in (self, other)}
        return len(classes) < 2 and len(names) < 2 and self.num_blocks == other.num_blocks

    @property
    def total_seconds(self) -> float:
        """Wall time of all optimizer steps, evaluations of a search included."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def total_cpu_seconds(self) -> float:
        """CPU time of the first process for the same."""
        return sum(stage.cpu_seconds for stage in self.stages)

    @property
    def total_flops(self) -> float:
        """FLOPs of all optimizer steps on one process."""
        return sum(stage.flops * stage.steps for stage in self.stages)


def read_run(folder: Path) -> Run:
    """Read all that the output folder of a run tells.

    Raises:
        ReportError: It holds no run, or a file of it is damaged.
    """
    check_is_run(folder)
    values = read_json(folder / RUN_FILE)
    with understood(folder / RUN_FILE):
        starts = read_starts(values)
        data = tuple(read_source(source) for source in values.get("data_report", {}).get("sources", []))
    place = measured_folder(folder)
    growth: JSON = {} if place is None else read_optional(place / GROWTH_FILE) or {}
    metrics: JSON = {} if place is None else read_optional(place / METRICS_FILE) or {}
    with understood((place or folder) / GROWTH_FILE):
        entered = tuple(Entered.read(record) for record in growth.get("history", []))
        stages = tuple(StageCost.read(row) for row in growth.get("stages", []))
        decisions = tuple(dict(decision) for decision in growth.get("decisions", []))
        saving = {name: _number(value) for name, value in growth.get("saving_against_full", {}).items()}
        seconds = {str(name): float(value) for name, value in growth.get("seconds", {}).items()}
    with understood((place or folder) / METRICS_FILE):
        rows = _rows(metrics.get("rows", {}))
        validations = tuple(_numbers(row) for row in metrics.get("validations", growth.get("validations", [])))
    plan = _plan(folder, growth)
    return Run(
        folder=folder,
        name=folder.name or str(folder.resolve()),
        starts=starts,
        plan=plan,
        blocks=_block_names(plan, entered),
        entered=entered,
        stages=stages,
        planned=_planned(folder),
        decisions=decisions,
        rows=rows,
        validations=validations,
        held_out=_held_out(folder),
        pictures=tuple(find_pictures(folder)),
        data=data,
        saving=saving,
        seconds=seconds,
        device=str(growth.get("device", "")),
        measured=place,
    )


def _rows(values: JSON) -> dict[str, list[float]]:
    """The columns that are drawn.

    Raises:
        ValueError: They are not of one length.
        KeyError: A column is missing.
    """
    if not values:
        return {}
    rows = {name: [float(value) for value in values[name]] for name in COLUMNS}
    lengths = {name: len(column) for name, column in rows.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its columns have different lengths {lengths}")
    return rows


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _numbers(row: JSON) -> dict[str, float]:
    return {str(name): float(value) for name, value in row.items()}


def _plan(folder: Path, growth: JSON) -> GrowthPlan | None:
    """The plan as it was followed, or as it was laid before the first step; None without a file of it."""
    if "plan" in growth:
        with understood(folder / GROWTH_FILE):
            return _checked_plan(growth["plan"])
    values = read_optional(folder / PLAN_FILE)
    with understood(folder / PLAN_FILE):
        return None if values is None else _checked_plan(values)


def _checked_plan(values: JSON) -> GrowthPlan:
    """The plan in a file.

    Raises:
        PlanError or ValueError: It is damaged.
    """
    blocks = values.get("num_blocks")
    # Before the plan is built: its checks go through all of them.
    if isinstance(blocks, int) and blocks > MOST_BLOCKS:
        raise ValueError(f"num_blocks is {blocks}, more than any model has")
    return GrowthPlan.from_dict(values)


def _planned(folder: Path) -> tuple[Planned, ...]:
    values = read_optional(folder / PLANNED_FILE)
    if values is None:
        return ()
    with understood(folder / PLANNED_FILE):
        return tuple(Planned.read(row) for row in values["stages"])


def _held_out(folder: Path) -> HeldOut | None:
    values = read_optional(folder / HELD_OUT_FILE)
    with understood(folder / HELD_OUT_FILE):
        return None if values is None else HeldOut.read(values)


def _block_names(plan: GrowthPlan | None, entered: tuple[Entered, ...]) -> tuple[str, ...]:
    """Names of the blocks in forward order, as far as the stages that were entered tell them."""
    if plan is None:
        return ()
    names = {index: f"block {index + 1}" for index in range(plan.num_blocks)}
    for record in entered:
        if not 0 <= record.stage < len(plan.stages):
            continue
        indices = plan.stages[record.stage].blocks
        if len(indices) == len(record.blocks):
            names.update(zip(indices, record.blocks))
    return tuple(names[index] for index in range(plan.num_blocks))
