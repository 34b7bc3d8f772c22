"""The summary of a run: what it was, what it did, what it cost, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .advice import advice
from .markup import Child, Html, element
from .quality import last_quarter
from .run_folder import Run
from .words import DASH, count, duration, loss, percent, ratio, short, size


def summary(run: Run) -> Html:
    """The tiles and sentences at the top of a run."""
    tiles = []
    for name, value, note in _tiles(run):
        tile = element(
            "div",
            element("dt", name),
            element("dd", value, element("small", note)),
            class_="tile",
        )
        tiles.append(tile)
    return element(
        "div",
        element("p", status(run), class_="status" if run.ended else "status open"),
        element("dl", tiles, class_="tiles"),
        _part("What it was", [what_it_was(run)]),
        _part("What it did", list(what_it_did(run))),
        _part("What it cost", list(what_it_cost(run))),
        _part("What to do next", advice(run)),
        class_="summary",
    )


def status(run: Run) -> str:
    """How far the run is."""
    steps = f"{run.steps_done:,} of {run.steps:,} steps"
    if run.measured is None:
        return "It has no complete checkpoint yet, so nothing of it was measured."
    if not run.ended:
        place = run.measured.name
        return f"Not complete: it runs, or was cut off. The newest complete checkpoint, {place}, has {steps}."
    if run.held_out is not None and run.held_out.stopped is not None:
        return f"Stopped early, and complete: {steps}."
    return f"Complete: {steps}."


def what_it_was(run: Run) -> str:
    """Script, model, data and plan in words."""
    details = []
    if run.start.model_class:
        details.append(run.start.model_class)
    if run.start.parameters:
        parameters = short(run.start.parameters)
        details.append(f"{parameters} parameters")
    text = f"{run.script} trained {run.model}"
    if details:
        text += f" ({', '.join(details)})"
    if run.data:
        source = run.data[0]
        images = count(source.used, "image")
        text += f" on {images} from {source.source}"
    return f"{text}. {plan_in_words(run)}"


def plan_in_words(run: Run) -> str:
    """The plan in a sentence."""
    plan = run.plan
    if plan is None:
        return "Its plan is not known."
    steps = count(plan.num_training_steps, "step")
    numbers = [str(len(stage.blocks)) for stage in plan.stages]
    if len(numbers) == 1:
        return f"All of its {steps} train {numbers[0]} of {plan.num_blocks} blocks."
    way = "opens" if plan.opens else "freezes"
    if not plan.monotone:
        way = "moves a window over"
    stages = f"{len(numbers)} stages over {steps}"
    return f"It {way} blocks in {stages}: {', '.join(numbers)} of {plan.num_blocks} train."


def what_it_did(run: Run) -> Iterator[str]:
    """Losses and accuracy in sentences."""
    yield from _losses_in_words(run)
    if run.decisions:
        decisions = count(len(run.decisions), "decision")
        yield f"A search made {decisions}."
    resumes = [f"{start.step:,}" for start in run.starts[1:]]
    if resumes:
        times = count(len(resumes), "time")
        yield f"It was resumed {times}, at step {', '.join(resumes)}."
    if run.measured is not None and not run.rows:
        yield "An older version wrote it: metrics of single steps, and what is drawn from them, are missing."


def _losses_in_words(run: Run) -> Iterator[str]:
    held_out = run.held_out
    if held_out is not None and held_out.evaluations:
        first = held_out.evaluations[0]
        last = held_out.evaluations[-1]
        text = f"Held-out loss {loss(first.loss)} at step {first.step:,}, {loss(last.loss)} at step {last.step:,}"
        if held_out.best is not None:
            step, value = held_out.best
            text += f"; the lowest is {loss(value)} at step {step:,}"
        yield f"{text}."
    for result in run.validations[-1:]:
        accuracy = percent(result.get("accuracy"))
        average = percent(result.get("ema_accuracy"))
        yield f"Validation accuracy {accuracy}, of the averaged weights {average}."
    losses = run.rows.get("loss")
    if losses:
        quarter = max(1, len(losses) // 4)
        start = sum(losses[:quarter]) / quarter
        end = last_quarter(losses)
        yield f"Mean training loss {loss(start)} over its first quarter, {loss(end)} over its last."


def what_it_cost(run: Run) -> Iterator[str]:
    """Time, FLOPs and memory in sentences."""
    if not run.stages:
        yield "Nothing was measured yet."
        return
    wall = duration(run.total_seconds)
    cpu = duration(run.total_cpu_seconds)
    flops = short(run.total_flops)
    yield f"Its steps took {wall} of wall time and {cpu} of CPU time, and {flops}FLOPs, on {_devices(run)}."
    phases = []
    for name, seconds in run.seconds.items():
        phases.append(f"{name} {duration(seconds)}")
    if phases:
        yield f"The last start as a whole: {', '.join(phases)}."
    if run.held_out is not None and run.held_out.evaluations:
        spent = sum(entry.seconds for entry in run.held_out.evaluations)
        share = ratio(spent, spent + run.total_seconds)
        yield f"Evaluations on held-out images took {duration(spent)}, {percent(share)} of steps and evaluations."
    yield saving_in_words(run)


def _devices(run: Run) -> str:
    device = run.device or "an unknown device"
    processes = run.start.processes
    if processes == 1:
        return f"{device}, in one process"
    return f"{device}, in {processes} processes, of which one is counted"


def saving_in_words(run: Run) -> str:
    """Cost against as many steps of full training."""
    words = []
    for name, noun in (("flops", "FLOPs"), ("time", "time")):
        value = run.saving.get(name)
        if not value:
            continue
        saved = 1 - 1 / value
        less = "fewer" if name == "flops" else "less"
        words.append(f"{percent(abs(saved))} {less if saved >= 0 else 'more'} {noun}")
    if not words:
        return "No stage trained all blocks at full size: what full training would have cost was not measured."
    return f"Against as many steps of full training: {' and '.join(words)}."


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of the largest numbers."""
    yield _quality_tile(run)
    pace = ratio(run.total_seconds, run.steps_done)
    if pace is None:
        yield "Wall time of the steps", DASH, "nothing was measured"
    else:
        yield "Wall time of the steps", duration(run.total_seconds), f"{duration(pace)} a step"
    largest = max((stage.memory for stage in run.stages), default=None)
    place = "of the process" if run.device in ("", "cpu") else "allocated on the GPU"
    yield "Peak memory", size(largest), place
    value = run.saving.get("flops")
    if value:
        yield "FLOPs saved", percent(1 - 1 / value), "against as many full steps"
    else:
        yield "FLOPs saved", DASH, "no stage trained all blocks"


def _quality_tile(run: Run) -> tuple[str, str, str]:
    if run.held_out is not None and run.held_out.best is not None:
        step, value = run.held_out.best
        return "Lowest held-out loss", loss(value), f"at step {step:,}"
    losses = run.rows.get("loss")
    if losses:
        return "Training loss", loss(last_quarter(losses)), "mean of the last quarter"
    return "Training loss", loss(run.stages[-1].loss if run.stages else None), "at the end of the last stage"


def _part(title: str, sentences: Sequence[Child]) -> Html:
    points = [element("li", text) for text in sentences]
    return element(
        "div",
        element("h3", title),
        element("ul", points),
    )
