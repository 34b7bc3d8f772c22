"""`Run`: what the files in the output folder of a run tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE, RUN_FILE
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.values import JSON

from .files import check_is_run, measured_folder, read_json, read_optional, understood
from .held_out import HELD_OUT_FILE, HeldOut
from .pictures import Picture, find_pictures
from .stages import Entered, StageCost


PLAN_FILE = "growth_plan.json"
# Columns of metrics.json that the report draws.
COLUMNS = ("loss", "seconds", "cpu_seconds", "trainable", "resolution", "memory")


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        date: In ISO 8601.
        step: Optimizer steps done before it.
        steps: Optimizer steps of the whole run; None in files of older versions.
        processes: Number of processes.
        command: As it was typed.
        versions: Package -> version.
        settings: Flag -> value.
        given: Flags of the command line.
        data: Mark of the data, if it was noted.
        model_class: Class of the model that trains; empty in files of older versions.
        parameters: Number of its parameters.
    """

    date: str
    step: int
    steps: int | None
    processes: int
    command: tuple[str, ...]
    versions: dict[str, str]
    settings: dict[str, Any]
    given: tuple[str, ...]
    data: str
    model_class: str
    parameters: int | None


@dataclass(frozen=True)
class DataSource:
    """What was found in one source of data, and what became of it; see `data.report.Reading`."""

    verb: str
    source: str
    found: int
    used: int
    left_out: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


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
        return Path(self.start.command[0]).name if self.start.command else "an unknown script"

    @property
    def model(self) -> str:
        """Name of the model, as the command line gave it."""
        settings = self.start.settings
        name = settings.get("pretrained_model_name_or_path") or settings.get("model")
        return str(name) if name else f"the default model of {self.script}"

    @property
    def model_key(self) -> tuple[str, int, str]:
        """Runs with equal keys trained the same model: its class, number of blocks and last part of its name."""
        name = self.start.settings.get("pretrained_model_name_or_path") or self.start.settings.get("model")
        blocks = 0 if self.plan is None else self.plan.num_blocks
        return (self.start.model_class, blocks, Path(str(name)).name if name else "")

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
        starts = _starts(values)
        data = tuple(_source(source) for source in values.get("data_report", {}).get("sources", []))
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


def _starts(values: JSON) -> tuple[Start, ...]:
    """The starts in run.json; a file of a version that kept no history holds the settings of one."""
    entries = values.get("starts") or [{"step": 0, "settings": values}]
    return tuple(_start(entry) for entry in entries)


def _start(entry: JSON) -> Start:
    groups = dict(entry["settings"])
    model = dict(entry.get("model", {}))
    steps = entry.get("steps")
    parameters = model.get("parameters")
    return Start(
        date=str(entry.get("date", "")),
        step=int(entry["step"]),
        steps=None if steps is None else int(steps),
        processes=int(entry.get("num_processes", 1)),
        command=tuple(map(str, entry.get("command", []))),
        versions={str(name): str(version) for name, version in entry.get("versions", {}).items()},
        settings=_flat(groups),
        given=tuple(map(str, groups.get("given", []))),
        data=str(entry.get("identity", {}).get("digest", "")),
        model_class=str(model.get("class", "")),
        parameters=None if parameters is None else int(parameters),
    )


def _flat(groups: dict[str, Any]) -> dict[str, Any]:
    """Flag -> value over all groups of flags; the first group wins, as in `training.arguments.flat`."""
    found: dict[str, Any] = {}
    for name, value in groups.items():
        for flag, setting in value.items() if isinstance(value, dict) else [(name, value)]:
            found.setdefault(str(flag), setting)
    found.pop("given", None)
    return found


def _source(values: JSON) -> DataSource:
    left_out = dict(values.get("left_out", {}))
    examples = dict(values.get("examples", {}))
    return DataSource(
        verb=str(values["verb"]),
        source=str(values["source"]),
        found=int(values["found"]),
        used=int(values["used"]),
        left_out={str(reason): int(number) for reason, number in left_out.items()},
        examples={str(reason): tuple(map(str, names)) for reason, names in examples.items()},
        notes=tuple(map(str, values.get("notes", []))),
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
            return GrowthPlan.from_dict(growth["plan"])
    values = read_optional(folder / PLAN_FILE)
    with understood(folder / PLAN_FILE):
        return None if values is None else GrowthPlan.from_dict(values)


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
        if record.stage >= len(plan.stages):
            continue
        indices = plan.stages[record.stage].blocks
        if len(indices) == len(record.blocks):
            names.update(zip(indices, record.blocks))
    return tuple(names[index] for index in range(plan.num_blocks))


def is_finite(value: float | None) -> bool:
    """Whether a number is known and finite."""
    return value is not None and math.isfinite(value)
