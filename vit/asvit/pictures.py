"""Tables and pictures of a search and of a scaling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from autoprog_diffusion.training.report import smooth

from .cost import multiply_adds, parameter_count
from .genotype import STAGES, Genotype
from .ranking import Evaluations, order, rank_sums
from .reinforce import Found
from .scaling import Member


# Column of a table -> the format of its numbers.
FORMATS = {"NTK": ".3f", "length distortion": ".4f", "rank sum": ".0f", "params (M)": ".2f", "MACs (G)": ".3f"}
Row = dict[str, object]


def print_best(found: Found, evaluations: Evaluations, image_size: int, rows: int = 10) -> None:
    """Print the networks with the best rank sums among all that were evaluated, and the one that was chosen."""
    sums = rank_sums(evaluations)
    first = _first_steps(found)
    table: list[Row] = []
    for rank, index in enumerate(order(evaluations), 1):
        item = evaluations[index]
        chosen = item.genotype == found.genotype
        if rank > rows and not chosen:
            continue
        genotype = Genotype.parse(item.genotype)
        table.append(
            {
                "": "chosen" if chosen else rank,
                "genotype": item.genotype,
                "NTK": item.ntk,
                "length distortion": item.length,
                "rank sum": sums[index],
                "params (M)": parameter_count(genotype, 1000) / 1e6,
                "MACs (G)": multiply_adds(genotype, image_size, 1000) / 1e9,
                "first at step": first.get(item.genotype, "never"),
            }
        )
    degenerate = sum(item.degenerate for item in evaluations)
    _print_table(f"best of {len(evaluations)} networks, {degenerate} degenerate", table)


def draw_search(path: Path, found: Found, evaluations: Evaluations) -> None:
    """Draw the two scores of all networks, and how the best one found improved with the evaluations."""
    figure = Figure(figsize=(11, 4.5), dpi=110, layout="tight")
    scores, progress = figure.subplots(1, 2)
    _draw_scores(figure, scores, found, evaluations)
    sums = {item.genotype: total for item, total in zip(evaluations, rank_sums(evaluations))}
    drawn = [sums[genotype] for genotype in found.trace]
    steps = range(1, len(drawn) + 1)
    progress.plot(steps, drawn, ".", color="0.75", markersize=4, label="network of the step")
    progress.step(steps, np.minimum.accumulate(drawn), color="C0", where="post", label="best so far")
    progress.set(xlabel="step", ylabel="rank sum among all networks (lower is better)")
    if found.rewards:
        rewards = progress.twinx()
        rewards.plot(steps, smooth(found.rewards), color="C1", linewidth=1)
        rewards.set_ylabel("reward, smoothed", color="C1")
    progress.legend(loc="upper right", fontsize=8)
    figure.savefig(path)


def _draw_scores(figure: Figure, axes: Axes, found: Found, evaluations: Evaluations) -> None:
    """A dot for every network that is not degenerate, coloured by the step that drew it first, and a star."""
    first = _first_steps(found)
    last = len(found.trace)
    sound = [item for item in evaluations if not item.degenerate]
    rows = [(item.length, item.ntk, first.get(item.genotype, last)) for item in sound]
    lengths, ntks, steps = zip(*rows)
    dots = axes.scatter(lengths, ntks, c=steps, s=14)
    figure.colorbar(dots, ax=axes, label="step")
    chosen = next(item for item in sound if item.genotype == found.genotype)
    axes.plot(chosen.length, chosen.ntk, "*", color="C3", markersize=16, label=found.genotype)
    axes.set(xlabel="length distortion (higher is better)", ylabel="NTK condition number (lower is better)")
    axes.set_yscale("log")
    axes.legend(loc="upper left", fontsize=8)


def print_family(family: Sequence[Member]) -> None:
    """Print one row per network."""
    rows: list[Row] = []
    for index, member in enumerate(family):
        genotype = Genotype.parse(member.genotype, {})
        rows.append(
            {
                "": index,
                "genotype": member.genotype,
                "depth": sum(genotype.depths),
                "width": genotype.width,
                "params (M)": member.params / 1e6,
                "MACs (G)": member.flops / 1e9,
                "NTK": member.ntk,
                "length distortion": member.length,
                "chosen from": member.candidates - member.rejected,
            }
        )
    _print_table(f"family of {len(family)} networks", rows)


def draw_family(path: Path, family: Sequence[Member]) -> None:
    """Draw depths and width, size and cost, and the two scores along the family."""
    figure = Figure(figsize=(12, 4), dpi=110, layout="tight")
    shape, size, scores = figure.subplots(1, 3)
    _draw_shapes(shape, [Genotype.parse(member.genotype, {}) for member in family])
    rows = [(member.params / 1e6, member.flops / 1e9, member.ntk, member.length) for member in family]
    params, flops, ntk, length = zip(*rows)
    size.plot(params, ".-", label="parameters (M)")
    size.plot(flops, ".-", label="multiply-adds (G)")
    size.set(xlabel="network of the family", yscale="log")
    size.legend(loc="upper left", fontsize=8)
    scores.set_xlabel("parameters (M)")
    scores.plot(params, ntk, ".-", color="C0")
    scores.set_ylabel("NTK condition number", color="C0")
    lengths = scores.twinx()
    lengths.plot(params, length, ".-", color="C1")
    lengths.set_ylabel("length distortion", color="C1")
    figure.savefig(path)


def _draw_shapes(axes: Axes, genotypes: Sequence[Genotype]) -> None:
    """Bars of the blocks of every stage, one on the other, and a line of the widths."""
    depths = np.array([genotype.depths for genotype in genotypes])  # (networks, stages)
    tops = depths.cumsum(1)
    steps = range(len(depths))
    for stage in range(STAGES):
        depth = depths[:, stage]
        axes.bar(steps, depth, bottom=tops[:, stage] - depth, color=f"C{stage}", label=f"stage {stage + 1}")
    axes.set(xlabel="network of the family", ylabel="blocks")
    axes.legend(loc="upper left", fontsize=8)
    widths = axes.twinx()
    widths.plot([genotype.width for genotype in genotypes], "k.-")
    widths.set(ylabel="width C (line)", ylim=(0, None))


def _first_steps(found: Found) -> dict[str, int]:
    """Genotype -> the step, from 1, that drew it first; REINFORCE may end in a network that it never drew."""
    first: dict[str, int] = {}
    for step, genotype in enumerate(found.trace, 1):
        first.setdefault(genotype, step)
    return first


def _print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows of equal keys; the keys are the titles of the columns."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "genotype" else "right")
    for row in rows:
        table.add_row(*(format(value, FORMATS.get(name, "")) for name, value in row.items()))
    Console(width=130 if not sys.stdout.isatty() else None).print(table)
