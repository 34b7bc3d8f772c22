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
    milliseconds = [1000 * value for value in rows["seconds"]]
    percents = [100 * value for value in rows["trainable"]]
    mebibytes = [value / 2**20 for value in rows["memory"]]
    small = [
        _small("Time of a step", "ms", _clipped(milliseconds), bands),
        _small("Parameters that train", "%", percents, bands),
        _small("Memory", "MiB", mebibytes, bands),
    ]
    if len(set(rows["resolution"])) > 1:
        size = _small("Size of the images", "px", rows["resolution"], bands)
        small.append(size)
    return element("div", _losses(rows["loss"], bands), side_by_side(*small))


def _losses(losses: list[float], bands: Sequence[Band]) -> Html:
    average = smooth(losses, smoothing(losses))
    lines = [
        Series("every step", thinned(losses), faint=True),
        Series("moving average", thinned(average)),
    ]
    return draw(Chart("Training loss", X_LABEL, "", lines, bands=bands, log=True))


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
