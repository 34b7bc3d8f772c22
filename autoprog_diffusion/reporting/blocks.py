"""A picture of which blocks of the model trained when."""

from __future__ import annotations

from autoprog_diffusion.growth.plan import GrowthPlan

from .charts import Band
from .markup import Html, element
from .run_folder import Run
from .scales import WIDTH, Axis, tick_label


MOST_NAMES = 40
ROW = 10.0  # height of a block in the drawing, which the page stretches
GAP = 1.5


def draw_blocks(run: Run) -> Html | None:
    """The model's blocks, the first one at the top, over the steps: those that train are filled."""
    plan = run.plan
    if plan is None or not plan.num_blocks:
        return None
    axis = Axis(0, plan.num_training_steps)
    cells = []
    for number, (start, end) in enumerate(stage_ends(plan)):
        column = Band(axis.place(start), axis.place(end), f"stage {number + 1}")
        training = set(plan.stages[number].blocks)
        for block, name in enumerate(run.blocks):
            cells.append(
                _cell(
                    name,
                    block,
                    column,
                    trains=block in training,
                )
            )
    height = ROW * plan.num_blocks
    drawing = element(
        "svg",
        cells,
        _progress(run, axis, height),
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=describe_blocks(run, plan),
    )
    labels = []
    for value in axis.ticks():
        labels.append(element("span", tick_label(value), style=f"left:{100 * axis.place(value):.2f}%"))
    tall = min(26, max(8, 420 / plan.num_blocks)) * plan.num_blocks
    plot = element(
        "div",
        element(
            "div",
            _names(run),
            class_="names",
            aria_hidden="true",
        ),
        element("div", drawing, class_="drawing"),
        element(
            "div",
            labels,
            class_="xlabels",
            aria_hidden="true",
        ),
        class_="plot blocks",
        style=f"--tall:{tall:.0f}px",
    )
    legend = element(
        "p",
        element("span", element("i", class_="key box trains"), "trains"),
        element("span", element("i", class_="key box still"), "does not train"),
        class_="legend",
    )
    return element(
        "figure",
        element("figcaption", "What trained when"),
        legend,
        plot,
        element("p", "optimizer step", class_="xtitle"),
        class_="chart",
    )


def stage_ends(plan: GrowthPlan) -> list[tuple[int, int]]:
    """First step, and the step after the last one, of every stage."""
    starts = [stage.start for stage in plan.stages]
    return list(zip(starts, [*starts[1:], plan.num_training_steps]))


def describe_blocks(run: Run, plan: GrowthPlan) -> str:
    """The picture in words."""
    sentences = [f"Blocks that train, of {plan.num_blocks}."]
    for number, (start, end) in enumerate(stage_ends(plan)):
        blocks = plan.stages[number].blocks
        names = f": {run.blocks[blocks[0]]} to {run.blocks[blocks[-1]]}" if blocks else ""
        sentences.append(f"Stage {number + 1}, steps {start + 1} to {end}: {len(blocks)}{names}.")
    return " ".join(sentences)


def _cell(name: str, row: int, column: Band, *, trains: bool) -> Html:
    """One block in one stage; the column's ends are shares of the width."""
    words = "trains" if trains else "does not train"
    width = WIDTH * (column.end - column.start)
    return element(
        "rect",
        element("title", f"{name} {words} in {column.label}"),
        class_="trains" if trains else "still",
        x=f"{WIDTH * column.start:.2f}",
        y=f"{ROW * row:.2f}",
        # A narrow stage must not vanish into its gap.
        width=f"{max(0.6 * width, width - GAP):.2f}",
        height=f"{ROW - GAP:.2f}",
    )


def _names(run: Run) -> list[Html]:
    """Names beside the rows; of a model of many blocks every so many."""
    count = len(run.blocks)
    every = -(-count // MOST_NAMES)
    names = []
    for index, name in enumerate(run.blocks):
        if index % every == 0:
            names.append(element("span", name, style=f"top:{100 * (index + 0.5) / count:.2f}%"))
    return names


def _progress(run: Run, axis: Axis, height: float) -> Html | None:
    """A veil over the steps that a run has not done."""
    if run.steps_done >= axis.high:
        return None
    left = WIDTH * axis.place(run.steps_done)
    title = element("title", f"not trained yet: the run stands at step {run.steps_done}")
    return element(
        "rect", title, class_="veil", x=f"{left:.2f}", y=0, width=f"{WIDTH - left:.2f}", height=f"{height:.2f}"
    )
