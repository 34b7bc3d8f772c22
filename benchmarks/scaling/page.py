"""The tables of docs/scale.md from summary.json; a test compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any


PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"
SHOWN = (8, 64, 1024)
MEMORY = 80e9  # bytes of a GPU


def write_page(results: dict[str, Any], page: Path = PAGE) -> None:
    """Put every table between its two marks on the page, `<!-- NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: The page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables(results).items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->\n")
        if not end:
            raise ValueError(f"{page} lacks the lines <!-- {name} --> and <!-- end {name} -->: put them there.")
        text = before + begin + table + end + after
    page.write_text(text, encoding="utf-8")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Every table of the page as Markdown, by name."""
    traffic = "\n".join([traffic_table(model) for model in results["models"]] + [checked(results), ""])
    return {"traffic": traffic, "assumptions": assumptions(results), "scaling": scaling_table(results)}


def traffic_table(model: dict[str, Any]) -> str:
    """Per stage: what trains, what is sent, what is held, what is computed."""
    total, full = model["parameters"], model["runs"]["full"][0]
    lines = [
        f"**{model['model']}** ({model['class']}, {total / 1e6:,.0f} M parameters, images of {model['pixels']} px)",
        "",
        "| stage | trains | all-reduced by DDP | sent, DDP | sent, FSDP2 | state, DDP | state, FSDP2 | FLOPs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for order in ("interleaved", "suffix"):
        run = model["runs"][order]
        lines += [traffic_row(f"{order} {k}", total, row) for k, row in enumerate(run[:-1])]
        mean = {key: sum(row[key] for row in run) / len(run) for key in full}
        lines.append(traffic_row(f"{order}, whole run", total, mean, bold=True))
    lines.append(traffic_row("full fine-tuning, or the last stage", total, full))
    return "\n".join([*lines, ""])


def traffic_row(label: str, total: int, row: dict[str, Any], bold: bool = False) -> str:
    """One line; an average has no state of its own."""
    sent = [gigabytes(row[f"{kind}_bytes"]) for kind in ("all_reduced", "ddp_sent", "fsdp2_sent")]
    state = ["", ""] if bold else [gigabytes(row[f"{kind}_state_bytes"]) for kind in ("ddp", "fsdp2")]
    cells = [label, f"{row['trained'] / total:.1%}", *sent, *state, f"{row['compute']:.0%}"]
    return "| " + " | ".join(f"**{cell}**" if bold and cell else cell for cell in cells) + " |"


def gigabytes(size: float) -> str:
    """Bytes in GB (1e9), three digits."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def scaling_table(results: dict[str, Any]) -> str:
    """Per model, backend and number of GPUs: the full step, how much of it is compute, and what growth gains."""
    lines = [
        "| model, images per GPU | backend | GPUs | full step | of it compute | interleaved | suffix |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for model in results["models"]:
        for backend in model["scaling_ms"]:
            label = f"{model['model']}, {model['batch_per_gpu']} | {backend}"
            if model["runs"]["full"][0][f"{backend.lower()}_state_bytes"] > MEMORY:
                lines.append(f"| {label} | | does not fit | | | |")
                continue
            lines += [
                f"| {label} | {gpus:,} | {' | '.join(speeds(results, model, backend, gpus))} |" for gpus in SHOWN
            ]
    return "\n".join([*lines, ""])


def speeds(results: dict[str, Any], model: dict[str, Any], backend: str, gpus: int) -> list[str]:
    """The last four cells of a line: without overlap / with full overlap."""
    at, kinds = results["assumptions"]["gpus"].index(gpus), ("no overlap", "full overlap")
    runs = {name: [run[k]["run"][at] for k in kinds] for name, run in model["scaling_ms"][backend].items()}
    compute = compute_ms(results["cluster"], model)
    gains = [[f"{f / ms:.2f}x" for f, ms in zip(runs["full"], runs[order])] for order in ("interleaved", "suffix")]
    steps, shares = [f"{ms:,.0f} ms" for ms in runs["full"]], [f"{compute / ms:.0%}" for ms in runs["full"]]
    return [span(cells) for cells in (steps, shares, *gains)]


def compute_ms(cluster: dict[str, float], model: dict[str, Any]) -> float:
    """Milliseconds of a full step that sends nothing."""
    full = model["runs"]["full"][0]
    flops = model["batch_per_gpu"] * (full["forward_flops"] + full["backward_flops"])
    return 1e3 * flops / (cluster["peak_flops"] * cluster["utilisation"])


def span(values: list[str]) -> str:
    """Two values, or one where they are the same."""
    return values[0] if values[0] == values[1] else " / ".join(values)


def checked(results: dict[str, Any]) -> str:
    """Result of the comparison with two real processes."""
    rows = results["checked"]
    equal, count = sum(row["equal"] for row in rows), sum(len(row["counted"]) for row in rows)
    return (
        f"Two real processes, tiny models of the same classes: {equal} of {len(rows)} runs ({count} stages) sent this."
    )


def assumptions(results: dict[str, Any]) -> str:
    """What the simulation takes for granted, and from where."""
    cluster = results["cluster"]
    us = {key: f"{1e6 * cluster[key]:.1f} us" for key in cluster if key.split("_")[0] in ("ring", "tree", "start")}
    rows = [
        ("GPU", f"{cluster['peak_flops'] / 1e12:.0f} TFLOP/s, dense bf16", "H100 SXM, data sheet"),
        ("of it reached", f"{cluster['utilisation']:.0%}", "assumed; `--utilisation` takes yours"),
        ("inside a node", f"{cluster['nvlink'] / 1e9:.0f} GB/s per GPU and direction", "NVLink 4, data sheet"),
        (
            "between nodes",
            f"{8e-9 * cluster['network']:.0f} Gb/s per GPU, {cluster['node']} GPUs a node",
            "InfiniBand NDR",
        ),
        ("of both reached", f"{cluster['link_utilisation']:.0%}", "assumed"),
        ("start of a collective", us["start"], "NCCL's tuning model, protocol Simple"),
        ("step of a ring", f"{us['ring_nvlink']} in a node, {us['ring_network']} between nodes", "NCCL"),
        ("step of a tree", f"{us['tree_nvlink']} in a node, {us['tree_network']} between nodes", "NCCL"),
        ("DDP's buckets", f"{results['assumptions']['ddp_bucket'] >> 20} MiB, the faster of ring and tree", "PyTorch"),
    ]
    return "\n".join(["| what | value | source |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""])
