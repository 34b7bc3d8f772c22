"""The summary of a run: what it was, what it did, what it cost, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .advice import advice
from .markup import Child, Html, element
from .quality import last_quarter
from .run_folder import Run
from .stages import full_cost
from .words import DASH, count, duration, loss, percent, ratio, short, size


def summary(run: Run) -> Html:
    """The tiles and sentences at the top of a run."""
    tiles = [
        element("div", element("dt", name), element("dd", value, element("small", note)), class_="tile")
        for name, value, note in _tiles(run)
    ]
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
    if run.ended:
        stopped = run.held_out is not None and run.held_out.stopped is not None
        return f"Stopped early, and complete: {steps}." if stopped else f"Complete: {steps}."
    if run.measured is None:
        return "It has no complete checkpoint yet, so nothing of it was measured."
    return f"Not complete: it runs, or was cut off. The newest complete checkpoint, {run.measured.name}, has {steps}."


def what_it_was(run: Run) -> str:
    """Script, model, data and plan in words."""
    model = run.model
    details = []
    if run.start.model_class:
        details.append(run.start.model_class)
    if run.start.parameters:
        details.append(f"{short(run.start.parameters)} parameters")
    about = f" ({', '.join(details)})" if details else ""
    images = sum(source.used for source in run.data[:1])
    data = f" on {count(images, 'image')} from {run.data[0].source}" if images else ""
    return f"{run.script} trained {model}{about}{data}. {plan_in_words(run)}"


def plan_in_words(run: Run) -> str:
    """The plan in a sentence."""
    plan = run.plan
    if plan is None:
        return "Its plan is not known."
    steps = count(plan.num_training_steps, "step")
    if len(plan.stages) == 1:
        return f"All of its {steps} train {len(plan.stages[0].blocks)} of {plan.num_blocks} blocks."
    numbers = ", ".join(str(len(stage.blocks)) for stage in plan.stages)
    way = "opens" if plan.opens else "freezes"
    if not plan.monotone:
        way = "moves a window over"
    return f"It {way} blocks in {len(plan.stages)} stages over {steps}: {numbers} of {plan.num_blocks} train."


def what_it_did(run: Run) -> Iterator[str]:
    """Losses and accuracy in sentences."""
    held_out = run.held_out
    if held_out is not None and held_out.evaluations:
        first = held_out.evaluations[0]
        last = held_out.evaluations[-1]
        text = f"Held-out loss {loss(first.loss)} at step {first.step:,}, {loss(last.loss)} at step {last.step:,}"
        if held_out.best is not None:
            best_step, best_loss = held_out.best
            text += f"; the best is {loss(best_loss)} at step {best_step:,}"
        yield f"{text}."
    for result in run.validations[-1:]:
        words = [f"{name.replace('_', ' ')} {percent(result[name])}" for name in ("accuracy", "ema_accuracy")
                 if name in result]  # fmt: skip
        if words:
            yield f"Validation: {', '.join(words)}."
    losses = run.rows.get("loss", [])
    if losses:
        quarter = max(1, len(losses) // 4)
        start = sum(losses[:quarter]) / quarter
        yield f"Mean training loss {loss(start)} over its first quarter, {loss(last_quarter(losses))} over its last."
    if run.decisions:
        yield f"A search made {count(len(run.decisions), 'decision')}."
    if len(run.starts) > 1:
        yield f"It was resumed {count(len(run.starts) - 1, 'time')}, at step {_resumes(run)}."
    if not run.rows and run.measured is not None:
        yield "An older version wrote it: metrics of single steps, and what is drawn from them, are missing."


def what_it_cost(run: Run) -> Iterator[str]:
    """Time, FLOPs and memory in sentences."""
    if not run.stages:
        yield "Nothing was measured yet."
        return
    yield (
        f"Its steps took {duration(run.total_seconds)} of wall time and {duration(run.total_cpu_seconds)} of CPU time "
        f"of the first process, on {run.device or 'an unknown device'} "
        f"({count(run.start.processes, 'process').replace('processs', 'processes')}), and "
        f"{short(run.total_flops)}FLOPs."
    )
    phases = [f"{name} {duration(value)}" for name, value in run.seconds.items()]
    if phases:
        yield f"The last start as a whole: {', '.join(phases)}."
    if run.held_out is not None:
        spent = sum(entry.seconds for entry in run.held_out.evaluations)
        share = percent(ratio(spent, spent + run.total_seconds))
        yield f"Evaluations on held-out images took {duration(spent)}, {share} of steps and evaluations together."
    yield saving_in_words(run)


def saving_in_words(run: Run) -> str:
    """Cost against as many steps of full training."""
    words = []
    for name, less, more in (("flops", "fewer FLOPs", "more FLOPs"), ("time", "less time", "more time")):
        value = run.saving.get(name)
        if value:
            saved = 1 - 1 / value
            words.append(f"{percent(abs(saved))} {less if saved >= 0 else more}")
    if not words:
        return "No stage trained all blocks at full size: what full training would have cost was not measured."
    return f"Against as many steps of full training: {' and '.join(words)}."


def _tiles(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of the largest numbers."""
    if run.held_out is not None and run.held_out.best is not None:
        step, value = run.held_out.best
        yield "Best held-out loss", loss(value), f"at step {step:,}"
    elif run.rows.get("loss"):
        yield "Training loss", loss(last_quarter(run.rows["loss"])), "mean of the last quarter"
    yield "Wall time of the steps", duration(run.total_seconds) if run.stages else DASH, _pace(run)
    largest = max((stage.memory for stage in run.stages), default=None)
    on_cpu = run.device in ("", "cpu")
    yield "Peak memory", size(largest), "of the process" if on_cpu else "allocated on the GPU"
    full = None if run.plan is None else full_cost(run.stages, run.plan.num_blocks)
    saved = run.saving.get("flops")
    note = "against as many full steps" if full is not None else "no stage trained all blocks"
    yield "FLOPs saved", percent(1 - 1 / saved) if saved else DASH, note


def _pace(run: Run) -> str:
    pace = ratio(run.total_seconds, run.steps_done)
    return "" if pace is None else f"{duration(pace)} a step"


def _resumes(run: Run) -> str:
    return ", ".join(f"{start.step:,}" for start in run.starts[1:])


def _part(title: str, sentences: Sequence[Child]) -> Html:
    return element("div", element("h3", title), element("ul", [element("li", text) for text in sentences]))
