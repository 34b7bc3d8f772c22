"""Metrics made by hand."""

from __future__ import annotations

from typing import Any

from autoprog_diffusion.training.metrics import Metrics


ROW: dict[str, Any] = {
    "loss": 1.0, "seconds": 1.0, "cpu_seconds": 1.0, "stage": 0, "searching": False, "blocks": 2, "trainable": 0.5,
    "resolution": 32, "flops": 100, "memory": 2**20,
}  # fmt: skip


def metrics_of(*rows: dict[str, Any]) -> Metrics:
    """Metrics of one step per row, each told by what differs from `ROW`."""
    metrics = Metrics()
    for row in rows:
        metrics.add(**{**ROW, **row})
    return metrics
