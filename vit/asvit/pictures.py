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

from autoprog_diffusion.training.timeline import smooth

from .cost import multiply_adds, parameter_count
from .genotype import STAGES, Genotype
from .ranking import Evaluations, order, rank_sums
from .reinforce import Found
from .scaling import Member


# Column of a table -> the format of its numbers.
FORMATS = {"NTK": ".3f", "length distortion": ".4f", "rank sum": ".0f", "params (M)": ".2f", "MACs (G)": ".3f"}
CLASSES = 1000  # of the head whose cost the table of a search shows: ImageNet's
Row = dict[str, object]  # title of a column -> its value


def print_best(found: Found, evaluations: Evaluations, image_size: int, rows: int = 10) -> None:
    """Print the networks with the best rank sums among all that were evaluated, and the one that was chosen.

    Args:
        found: The end of the search.
        evaluations: All networks that were evaluated, once each.
        image_size: Side of the images, in pixels, for the cost.
        rows: Of the table; the chosen network is added where it is not among them.
    """
    sums = rank_sums(evaluations)
    first = _first_steps(found)
    table: list[Row] = []
    for rank, index in enumerate(order(evaluations), 1):
        item = evaluations[index]
        chosen = item.genotype == found.genotype
        if rank > rows and not chosen:
            continue
        genotype = Genotype.parse(item.genotype)
        params = parameter_count(genotype, CLASSES)
        flops = multiply_adds(genotype, image_size, CLASSES)
        row: Row = {
            "": "chosen" if chosen else rank,
            "genotype": item.genotype,
            "NTK": item.ntk,
            "length distortion": item.length,
            "rank sum": sums[index],
            "params (M)": params / 1e6,
            "MACs (G)": flops / 1e9,
            "first at step": first.get(item.genotype, "never"),
        }
        table.append(row)
    degenerate = sum(item.degenerate for item in evaluations)
    _print_table(f"best of {len(evaluations)} networks, {degenerate} degenerate", table)


def draw_search(path: Path, found: Found, evaluations: Evaluations) -> None:
    """Draw the two scores of all networks, and how the best one found improved with the evaluations.

    Args:
        path: Image file to write.
        found: The end of the search.
        evaluations: All networks that were evaluated, once each.
    """
    figure = Figure(figsize=(11, 4.5), dpi=110, layout="tight")
    scores, progress = figure.subplots(1, 2)
    _draw_scores(figure, scores, found, evaluations)
    _draw_progress(progress, found, evaluations)
    figure.savefig(path)


def _draw_progress(axes: Axes, found: Found, evaluations: Evaluations) -> None:
    """Draw the rank sum of every step's network and the least so far, and REINFORCE's rewards.

    Args:
        axes: To draw on.
        found: The end of the search.
        evaluations: All networks that were evaluated; ranks are among them.
    """
    sums = {}
    for item, rank_sum in zip(evaluations, rank_sums(evaluations)):
        sums[item.genotype] = rank_sum
    drawn = [sums[genotype] for genotype in found.trace]
    least = np.minimum.accumulate(drawn)
    steps = range(1, len(drawn) + 1)
    axes.plot(steps, drawn, ".", color="0.75", markersize=4, label="network of the step")
    axes.step(steps, least, color="C0", where="post", label="best so far")
    axes.set_xlabel("step")
    axes.set_ylabel("rank sum among all networks (lower is better)")
    if found.rewards:
        right = axes.twinx()
        right.plot(steps, smooth(found.rewards), color="C1", linewidth=1)
        right.set_ylabel("reward, smoothed", color="C1")
    axes.legend(loc="upper right", fontsize=8)


def _draw_scores(figure: Figure, axes: Axes, found: Found, evaluations: Evaluations) -> None:
    """Draw a dot for every network that is not degenerate, coloured by the step that drew it first.

    Args:
        figure: Of the axes, for the bar of colours.
        axes: To draw on.
        found: The end of the search; its network gets a star.
        evaluations: All networks that were evaluated.
    """
    first = _first_steps(found)
    last = len(found.trace)
    sound = [item for item in evaluations if not item.degenerate]
    lengths = [item.length for item in sound]
    ntks = [item.ntk for item in sound]
    steps = [first.get(item.genotype, last) for item in sound]
    dots = axes.scatter(lengths, ntks, c=steps, s=14)
    figure.colorbar(dots, ax=axes, label="step")
    chosen = next(item for item in sound if item.genotype == found.genotype)
    axes.plot(chosen.length, chosen.ntk, "*", color="C3", markersize=16, label=found.genotype)
    axes.set_xlabel("length distortion (higher is better)")
    axes.set_ylabel("NTK condition number (lower is better)")
    axes.set_yscale("log")
    axes.legend(loc="upper left", fontsize=8)


def print_family(family: Sequence[Member]) -> None:
    """Print one row per network."""
    rows: list[Row] = []
    for index, member in enumerate(family):
        genotype = Genotype.parse(member.genotype, {})
        row: Row = {
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
        rows.append(row)
    _print_table(f"family of {len(family)} networks", rows)


def draw_family(path: Path, family: Sequence[Member]) -> None:
    """Draw depths and width, size and cost, and the two scores along the family.

    Args:
        path: Image file to write.
        family: Networks, from the smallest.
    """
    figure = Figure(figsize=(12, 4), dpi=110, layout="tight")
    shape, size, scores = figure.subplots(1, 3)
    genotypes = [Genotype.parse(member.genotype, {}) for member in family]
    _draw_shapes(shape, genotypes)
    params = [member.params / 1e6 for member in family]
    flops = [member.flops / 1e9 for member in family]
    size.plot(params, ".-", label="parameters (M)")
    size.plot(flops, ".-", label="multiply-adds (G)")
    size.set_xlabel("network of the family")
    size.set_yscale("log")
    size.legend(loc="upper left", fontsize=8)
    scores.set_xlabel("parameters (M)")
    ntks = [member.ntk for member in family]
    scores.plot(params, ntks, ".-", color="C0")
    scores.set_ylabel("NTK condition number", color="C0")
    right = scores.twinx()
    lengths = [member.length for member in family]
    right.plot(params, lengths, ".-", color="C1")
    right.set_ylabel("length distortion", color="C1")
    figure.savefig(path)


def _draw_shapes(axes: Axes, genotypes: Sequence[Genotype]) -> None:
    """Draw bars of the blocks of every stage, one on the other, and a line of the widths.

    Args:
        axes: To draw on.
        genotypes: Of the family, from the smallest.
    """
    depths = np.array([genotype.depths for genotype in genotypes])  # (networks, stages)
    tops = depths.cumsum(1)
    steps = range(len(depths))
    for stage in range(STAGES):
        depth = depths[:, stage]
        bottom = tops[:, stage] - depth
        axes.bar(steps, depth, bottom=bottom, color=f"C{stage}", label=f"stage {stage + 1}")
    axes.set_xlabel("network of the family")
    axes.set_ylabel("blocks")
    axes.legend(loc="upper left", fontsize=8)
    right = axes.twinx()
    widths = [genotype.width for genotype in genotypes]
    right.plot(widths, "k.-")
    right.set_ylabel("width C (line)")
    right.set_ylim(bottom=0)


def _first_steps(found: Found) -> dict[str, int]:
    """Genotype -> the step, from 1, that drew it first; REINFORCE may end in a network that it never drew."""
    first: dict[str, int] = {}
    for step, genotype in enumerate(found.trace, 1):
        first.setdefault(genotype, step)
    return first


def _print_table(title: str, rows: Sequence[Row]) -> None:
    """Print a table.

    Args:
        title: Above the table.
        rows: Of equal keys, which are the titles of the columns.
    """
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "genotype" else "right")
    for row in rows:
        cells = [format(value, FORMATS.get(name, "")) for name, value in row.items()]
        table.add_row(*cells)
    # A terminal gives its own width; a file gets one that leaves long genotypes on one line.
    width = None if sys.stdout.isatty() else 130
    Console(width=width).print(table)
