"""Loss, step time, share of the parameters, size and memory of a run over its steps."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import Band, Chart, Series, draw, side_by_side
from .markup import Html, element
from .quality import smoothing
from .run_folder import Run
from .scales import smooth, thinned


X_LABEL = "optimizer step"


def timeline(run: Run) -> Html:
    """Loss, step time, share of the parameters, size and memory over the steps."""
    if not run.rows:
        return element("p", "No metrics of single steps are there to draw.", class_="note")
    rows = run.rows
    bands = stage_bands(run)
    smoothed = smooth(rows["loss"], smoothing(rows["loss"]))
    lines = [
        Series("every step", thinned(rows["loss"]), faint=True),
        Series("moving average", thinned(smoothed)),
    ]
    large = draw(
        Chart(
            "Training loss",
            X_LABEL,
            "",
            lines,
            bands=bands,
            log=True,
        )
    )
    times = [1000 * value for value in rows["seconds"]]
    small = [
        _small(
            "Time of a step",
            "ms",
            _clipped(times),
            bands,
        ),
        _small(
            "Parameters that train",
            "%",
            [100 * value for value in rows["trainable"]],
            bands,
        ),
        _small(
            "Memory",
            "MiB",
            [value / 2**20 for value in rows["memory"]],
            bands,
        ),
    ]
    if len(set(rows["resolution"])) > 1:
        small.append(
            _small(
                "Size of the images",
                "px",
                rows["resolution"],
                bands,
            )
        )
    return element("div", large, side_by_side(*small))


def stage_bands(run: Run) -> list[Band]:
    """The stages and searches of a run as parts of the x axis."""
    bands = []
    end = 0
    for stage in run.stages:
        start = end
        end += stage.steps
        bands.append(Band(start, end, stage.name))
    return bands


def _small(title: str, unit: str, values: Sequence[float], bands: Sequence[Band]) -> Html:
    line = [Series(title, thinned(values))]
    return draw(
        Chart(
            title,
            X_LABEL,
            unit,
            line,
            bands=bands,
            from_zero=True,
            low=True,
        )
    )


def _clipped(values: list[float]) -> list[float]:
    """The slowest steps, which build kernels or evaluate candidates, may lie outside of the picture."""
    ordered = sorted(values)
    most = 1.6 * ordered[int(0.9 * (len(ordered) - 1))]
    return [min(value, most) for value in values]
