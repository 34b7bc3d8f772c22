"""Line charts as SVG inside of HTML: the drawing stretches with the page, its words keep their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Html, element, joined
from .scales import HEIGHT, WIDTH, Axis, axis_of, drawable, tick_label


COLOURS = 8  # of series, in style.css


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        points: Pairs of x and y; a value that cannot be drawn breaks the line.
        colour: Which of the page's colours it has, from 0.
        dots: Whether every point is marked, with its values to be read by pointing at it.
        faint: Whether it stays behind the others: single measurements behind their average.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """A part of the x axis with a name."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Attributes:
        title: Above it.
        x_label: What the x axis counts.
        y_label: What the y axis counts.
        series: Its lines.
        bands: Parts of the x axis that are shaded in turns.
        marks: x and name of lines from top to bottom.
        log: Whether the y axis is logarithmic where it can be.
        from_zero: Whether the y axis begins at 0.
        x_from_zero: Whether the x axis does.
        low: Whether it is a low one among others.
        note: Below it.
        margin: x, and the lowest and highest y that noise alone may give there.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False
    from_zero: bool = False
    x_from_zero: bool = True
    low: bool = False
    note: str | None = None
    margin: Sequence[tuple[float, float, float]] = ()


def draw(chart: Chart) -> Html:
    """The chart as a figure, with a description for readers who do not see it."""
    known = finite_points(chart)
    if not known:
        return element("p", f"{chart.title}: nothing was measured.", class_="note")
    x_axis = _x_axis(chart, [x for x, _ in known])
    heights = [y for _, y in known]
    for _, low, high in chart.margin:
        heights += [low, high]
    y_axis = axis_of(heights, log=chart.log, from_zero=chart.from_zero)
    plot = element(
        "div",
        element("div", _y_labels(y_axis), class_="ylabels", aria_hidden="true"),
        element(
            "div",
            _drawing(chart, x_axis, y_axis),
            _band_names(chart, x_axis),
            class_="drawing",
        ),
        element("div", x_labels(x_axis), class_="xlabels", aria_hidden="true"),
        class_="plot low" if chart.low else "plot",
    )
    unit = element("span", f" {chart.y_label}", class_="unit")
    note = element("p", chart.note, class_="note") if chart.note else None
    return element(
        "figure",
        element("figcaption", chart.title, unit),
        _legend(chart),
        plot,
        element("p", chart.x_label, class_="xtitle"),
        note,
        class_="chart",
    )


def finite_points(chart: Chart) -> list[tuple[float, float]]:
    """The points of all lines that can be drawn."""
    points = []
    for line in chart.series:
        for x, y in line.points:
            if drawable(x, y):
                points.append((x, y))
    return points


def _drawing(chart: Chart, x_axis: Axis, y_axis: Axis) -> Html:
    """All that stretches with the page."""
    lines = [_line(line, x_axis, y_axis) for line in chart.series]
    marks = [_mark(x, label, x_axis) for x, label in chart.marks]
    return element(
        "svg",
        _bands(chart, x_axis),
        _grid(y_axis),
        _margin(chart, x_axis, y_axis),
        lines,
        marks,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=describe(chart),
    )


def describe(chart: Chart) -> str:
    """The chart in a sentence for each of its lines."""
    sentences = [f"{chart.title}, {chart.y_label} over {chart.x_label}."]
    for line in chart.series:
        points = [(x, y) for x, y in line.points if drawable(x, y)]
        if points and not line.faint:
            first = points[0]
            last = points[-1]
            sentences.append(
                f"{line.label}: {first[1]:.4g} at {first[0]:.4g}, {last[1]:.4g} at {last[0]:.4g}, "
                f"lowest {min(y for _, y in points):.4g}, highest {max(y for _, y in points):.4g}."
            )
    return " ".join(sentences)


def _x_axis(chart: Chart, values: list[float]) -> Axis:
    edges = [edge for band in chart.bands for edge in (band.start, band.end)]
    low = 0.0 if chart.x_from_zero else min(values)
    high = max([*values, *edges])
    return Axis(low, high) if high > low else Axis(low, low + 1)


def _bands(chart: Chart, axis: Axis) -> list[Html]:
    drawn = []
    for number, band in enumerate(chart.bands):
        left = WIDTH * axis.place(band.start)
        width = WIDTH * axis.place(band.end) - left
        title = element("title", f"{band.label}: {band.start:g} to {band.end:g}")
        shade = "band odd" if number % 2 else "band"
        drawn.append(
            element(
                "rect",
                title,
                class_=shade,
                x=_n(left),
                y=0,
                width=_n(width),
                height=_n(HEIGHT),
            )
        )
    return drawn


def _band_names(chart: Chart, axis: Axis) -> list[Html]:
    """Names of the bands, above the drawing; those of narrow bands are left to pointing at them."""
    names = []
    for band in chart.bands:
        start = axis.place(band.start)
        width = axis.place(band.end) - start
        if width > 0.1:
            style = f"left:{100 * start:.2f}%;width:{100 * width:.2f}%"
            names.append(
                element(
                    "span",
                    band.label,
                    class_="bandname",
                    style=style,
                )
            )
    return names


def _grid(axis: Axis) -> list[Html]:
    lines = []
    for value in axis.ticks():
        y = _n(HEIGHT * (1 - axis.place(value)))
        lines.append(
            element(
                "line",
                class_="grid",
                x1=0,
                x2=_n(WIDTH),
                y1=y,
                y2=y,
            )
        )
    return lines


def _margin(chart: Chart, x_axis: Axis, y_axis: Axis) -> Html | None:
    """The area between two values of y along x: how far noise alone moves a line."""
    if len(chart.margin) < 2:
        return None
    upper = [
        _point(
            x,
            high,
            x_axis,
            y_axis,
        )
        for x, _, high in chart.margin
    ]
    lower = [
        _point(
            x,
            low,
            x_axis,
            y_axis,
        )
        for x, low, _ in reversed(chart.margin)
    ]
    return element(
        "path",
        class_="margin",
        d=f"M{'L'.join([*upper, *lower])}Z",
    )


def _line(line: Series, x_axis: Axis, y_axis: Axis) -> Html:
    parts: list[list[str]] = [[]]
    dots = []
    for x, y in line.points:
        if not drawable(x, y):
            parts.append([])
            continue
        point = _point(
            x,
            y,
            x_axis,
            y_axis,
        )
        parts[-1].append(point)
        if line.dots:
            title = element("title", f"{line.label}: {y:.4g} at {x:.6g}")
            # A line of no length with round ends is a dot, however the drawing is stretched.
            dots.append(
                element(
                    "path",
                    title,
                    class_="dot",
                    d=f"M{point}h0.01",
                )
            )
    path = "".join(f"M{'L'.join(part)}" for part in parts if part)
    drawn = element(
        "path",
        class_="faint" if line.faint else "line",
        d=path,
    )
    return element(
        "g",
        drawn,
        dots,
        class_=f"c{line.colour % COLOURS}",
    )


def _mark(x: float, label: str, axis: Axis) -> Html:
    place = _n(WIDTH * axis.place(x))
    return element(
        "path",
        element("title", label),
        class_="mark",
        d=f"M{place} 0V{_n(HEIGHT)}",
    )


def _y_labels(axis: Axis) -> list[Html]:
    labels = []
    for value in axis.ticks():
        labels.append(element("span", tick_label(value), style=f"bottom:{100 * axis.place(value):.2f}%"))
    return labels


def x_labels(axis: Axis) -> list[Html]:
    """Labels below an axis."""
    labels = []
    for value in axis.ticks():
        labels.append(element("span", tick_label(value), style=f"left:{100 * axis.place(value):.2f}%"))
    return labels


def _legend(chart: Chart) -> Html | None:
    """Names of the lines where there are several, and of the marks."""
    entries = []
    if len(chart.series) > 1:
        for line in chart.series:
            key = element("i", class_=f"key{' thin' if line.faint else ''} c{line.colour % COLOURS}")
            entries.append(element("span", key, line.label))
    for _, label in chart.marks:
        entries.append(element("span", element("i", class_="key markkey"), label))
    return element("p", entries, class_="legend") if entries else None


def _point(x: float, y: float, x_axis: Axis, y_axis: Axis) -> str:
    return f"{_n(WIDTH * x_axis.place(x))} {_n(HEIGHT * (1 - y_axis.place(y)))}"


def _n(value: float) -> str:
    """A coordinate, to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def side_by_side(*charts: Html) -> Html:
    """Charts in columns where the page has room for them."""
    return element("div", joined(charts), class_="columns")
