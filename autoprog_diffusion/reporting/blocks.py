"""A picture of which blocks of the model trained when."""

from __future__ import annotations

from autoprog_diffusion.growth.plan import GrowthPlan

from .charts import Band, x_labels
from .markup import Html, element
from .run_folder import Run
from .scales import WIDTH, Axis


MOST_NAMES = 40
ROW = 10.0  # height of a block in the drawing, which the page stretches
GAP = 1.5


def draw_blocks(run: Run) -> Html | None:
    """The model's blocks, the first one at the top, over the steps: those that train are filled."""
    plan = run.plan
    if plan is None or not plan.num_blocks:
        return None
    axis = Axis(0, plan.num_training_steps)
    legend = element(
        "p",
        element("span", element("i", class_="key box trains"), "trains"),
        element("span", element("i", class_="key box still"), "does not train"),
        class_="legend",
    )
    row_height = min(26, max(8, 420 / plan.num_blocks))
    tall = row_height * plan.num_blocks
    plot = element(
        "div",
        element("div", _names(run), class_="names", aria_hidden="true"),
        element("div", _drawing(run, plan, axis), class_="drawing"),
        element("div", x_labels(axis), class_="xlabels", aria_hidden="true"),
        class_="plot blocks",
        style=f"--tall:{tall:.0f}px",
    )
    return element(
        "figure",
        element("figcaption", "What trained when"),
        legend,
        plot,
        element("p", "optimizer step", class_="xtitle"),
        class_="chart",
    )


def _drawing(run: Run, plan: GrowthPlan, axis: Axis) -> Html:
    """A row for every block, a column for every stage, and a veil over what is still to come."""
    cells = []
    for number, (start, end) in enumerate(stage_ends(plan)):
        column = Band(axis.place(start), axis.place(end), f"stage {number + 1}")
        training = set(plan.stages[number].blocks)
        for row, name in enumerate(run.blocks):
            cell = _cell(name, row, column, trains=row in training)
            cells.append(cell)
    height = ROW * plan.num_blocks
    return element(
        "svg",
        cells,
        _veil(run, axis, height),
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=describe_blocks(run, plan),
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


def _veil(run: Run, axis: Axis, height: float) -> Html | None:
    """A veil over the steps that a run has not done."""
    if run.steps_done >= axis.high:
        return None
    left = WIDTH * axis.place(run.steps_done)
    width = WIDTH - left
    return element(
        "rect",
        element("title", f"not trained yet: the run stands at step {run.steps_done}"),
        class_="veil",
        x=f"{left:.2f}",
        y=0,
        width=f"{width:.2f}",
        height=f"{height:.2f}",
    )
