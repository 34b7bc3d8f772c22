"""`growth.json` and `metrics.json`: what a run did and measured, at its end and in every checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import autoprog_diffusion
from autoprog_diffusion.command_line import typed_command
from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE, write_text_atomically
from autoprog_diffusion.growth.protocol import Growth

from .metrics import Metrics, saving


if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_VERSION = 1
DIGITS = 6  # of a number in metrics.json


def write_growth_json(path: Path, growth: Growth, metrics: Metrics, seconds: dict[str, float]) -> None:
    """Write plan, configuration, history and measurements; `GrowthPlan.load` reads the plan back from it."""
    summaries = metrics.summaries()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__}
    values: dict[str, Any] = {
        "plan": growth.plan.to_dict(),
        "config": growth.config.to_dict(),
        "decisions": growth.decisions,
        "history": [record.to_dict() for record in growth.history],
        "stages": [asdict(summary) for summary in summaries],
        "saving_against_full": saving(summaries, growth.plan.num_blocks),
        "validations": metrics.validations,
        "seconds": seconds,
        "training_cpu_seconds": metrics.total("cpu_seconds"),
        "training_flops": metrics.total("flops"),
        "versions": versions,
        "device": device,
        "command": typed_command(sys.argv),
    }
    write_text_atomically(path, json.dumps(values, indent=2) + "\n")


def write_metrics_json(path: Path, metrics: Metrics) -> None:
    """Write the metrics of every optimizer step.

    Its keys: `metrics_version`; `written`, the time in ISO 8601; `steps`, the number of optimizer steps done; `rows`,
    one list of that length for every column of `metrics.COLUMNS` (seconds, FLOPs and bytes, see `StageSummary`), with
    6 significant digits; `validations`, as measured.
    """
    rows = {name: [_short(value) for value in values] for name, values in metrics.rows.items()}
    values: dict[str, Any] = {
        "metrics_version": METRICS_VERSION,
        "written": datetime.now(timezone.utc).isoformat(),
        "steps": len(metrics),
        "rows": rows,
        "validations": metrics.validations,
    }
    write_text_atomically(path, "".join(_lines(values)))


def keep_measurements(accelerator: Accelerator, growth: Growth, metrics: Metrics) -> None:
    """Let every checkpoint hold `growth.json` and `metrics.json`, so that a run that is cut off can be reported."""

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        del models, weights
        if accelerator.is_main_process:
            write_growth_json(
                Path(folder) / GROWTH_FILE,
                growth,
                metrics,
                {},
            )
            write_metrics_json(Path(folder) / METRICS_FILE, metrics)

    accelerator.register_save_state_pre_hook(save)


def _short(value: float) -> float:
    """A whole number as it is and without a point, another one with a few digits."""
    return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")


def _lines(values: dict[str, Any]) -> Iterable[str]:
    """JSON with a column a line."""
    rows = values.pop("rows")
    head = json.dumps(values, indent=2).removesuffix("\n}")
    columns = ",\n".join(f"    {json.dumps(name)}: {json.dumps(column)}" for name, column in rows.items())
    return [head, ',\n  "rows": {\n', columns, "\n  }\n}\n"]
