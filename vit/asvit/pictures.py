"""Tables and pictures of a search and of a scaling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from autoprog_diffusion.training.report import smooth

from .cost import multiply_adds, parameter_count
from .genotype import STAGES, Genotype
from .ranking import order, rank_sums
from .reinforce import Found
from .scaling import Member
from .score_cache import Evaluation


def print_best(found: Found, evaluations: Sequence[Evaluation], image_size: int, rows: int = 10) -> None:
    """Print the networks with the best rank sums among all that were evaluated, and the one that was chosen."""
    sums = rank_sums(evaluations)
    first = _first_steps(found)
    rows_shown = []
    for rank, index in enumerate(order(evaluations), 1):
        item = evaluations[index]
        chosen = item.genotype == found.genotype
        if rank > rows and not chosen:
            continue
        genotype = Genotype.parse(item.genotype)
        rows_shown.append(
            {
                "": "chosen" if chosen else str(rank),
                "genotype": item.genotype,
                "NTK": f"{item.ntk:.3f}",
                "length distortion": f"{item.length:.4f}",
                "rank sum": f"{sums[index]:.0f}",
                "params (M)": f"{parameter_count(genotype, 1000) / 1e6:.2f}",
                "MACs (G)": f"{multiply_adds(genotype, image_size, 1000) / 1e9:.3f}",
                "first at step": str(first.get(item.genotype, "never")),
            }
        )
    degenerate = sum(item.degenerate for item in evaluations)
    _print_table(f"best of {len(evaluations)} networks, {degenerate} degenerate", rows_shown)


def draw_search(path: Path, found: Found, evaluations: Sequence[Evaluation]) -> None:
    """Draw the two scores of all networks, and how the best one found improved with the evaluations."""
    sound = [item for item in evaluations if not item.degenerate]
    figure = Figure(figsize=(11, 4.5), dpi=110)
    left, right = figure.subplots(1, 2)
    first = _first_steps(found)
    steps = [first.get(item.genotype, len(found.trace)) for item in sound]
    dots = left.scatter([item.length for item in sound], [item.ntk for item in sound], c=steps, s=14)
    figure.colorbar(dots, ax=left, label="step")
    chosen = next(item for item in evaluations if item.genotype == found.genotype)
    left.plot(chosen.length, chosen.ntk, "*", color="C3", markersize=16, label=found.genotype)
    left.set(xlabel="length distortion (higher is better)", ylabel="NTK condition number (lower is better)")
    left.set_yscale("log")
    left.legend(loc="upper left", fontsize=8)
    sums = dict(zip([item.genotype for item in evaluations], rank_sums(evaluations)))
    last = [sums[genotype] for genotype in found.trace]
    best = [min(last[: index + 1]) for index in range(len(last))]
    right.plot(range(1, len(last) + 1), last, ".", color="0.75", markersize=4, label="network of the step")
    right.step(range(1, len(best) + 1), best, color="C0", where="post", label="best so far")
    right.set(xlabel="step", ylabel="rank sum among all networks (lower is better)")
    if found.rewards:
        rewards = right.twinx()
        rewards.plot(range(1, len(found.rewards) + 1), smooth(found.rewards), color="C1", linewidth=1)
        rewards.set_ylabel("reward, smoothed", color="C1")
    right.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def print_family(family: Sequence[Member]) -> None:
    """Print one row per network."""
    rows = []
    for index, member in enumerate(family):
        genotype = Genotype.parse(member.genotype, {})
        rows.append(
            {
                "": str(index),
                "genotype": member.genotype,
                "depth": str(sum(genotype.depths)),
                "width": str(genotype.width),
                "params (M)": f"{member.params / 1e6:.2f}",
                "MACs (G)": f"{member.flops / 1e9:.3f}",
                "NTK": f"{member.ntk:.3f}",
                "length distortion": f"{member.length:.4f}",
                "chosen from": str(member.candidates - member.rejected),
            }
        )
    _print_table(f"family of {len(family)} networks", rows)


def draw_family(path: Path, family: Sequence[Member]) -> None:
    """Draw depths and width, size and cost, and the two scores along the family."""
    figure = Figure(figsize=(12, 4), dpi=110)
    shape, size, scores = figure.subplots(1, 3)
    genotypes = [Genotype.parse(member.genotype, {}) for member in family]
    steps, below = list(range(len(family))), [0] * len(family)
    for stage in range(STAGES):
        depths = [genotype.depths[stage] for genotype in genotypes]
        shape.bar(steps, depths, bottom=below, color=f"C{stage}", label=f"stage {stage + 1}")
        below = [low + depth for low, depth in zip(below, depths)]
    shape.set(xlabel="network of the family", ylabel="blocks")
    shape.legend(loc="upper left", fontsize=8)
    width = shape.twinx()
    width.plot(steps, [genotype.width for genotype in genotypes], "k.-")
    width.set_ylabel("width C (line)")
    width.set_ylim(0, None)
    size.plot(steps, [member.params / 1e6 for member in family], ".-", label="parameters (M)")
    size.plot(steps, [member.flops / 1e9 for member in family], ".-", label="multiply-adds (G)")
    size.set(xlabel="network of the family", yscale="log")
    size.legend(loc="upper left", fontsize=8)
    params = [member.params / 1e6 for member in family]
    scores.plot(params, [member.ntk for member in family], ".-", color="C0")
    scores.set(xlabel="parameters (M)")
    scores.set_ylabel("NTK condition number", color="C0")
    other = scores.twinx()
    other.plot(params, [member.length for member in family], ".-", color="C1")
    other.set_ylabel("length distortion", color="C1")
    figure.tight_layout()
    figure.savefig(path)


def _first_steps(found: Found) -> dict[str, int]:
    """Genotype -> the step, from 1, that drew it first; REINFORCE may end in a network that it never drew."""
    return {genotype: step for step, genotype in reversed(list(enumerate(found.trace, 1)))}


def _print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """Print rows of equal keys; the keys are the titles of the columns."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "genotype" else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=130 if not sys.stdout.isatty() else None).print(table)
