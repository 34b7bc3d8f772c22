"""What a zero-shot search costs: against the formulation of the released code, and against a whole run.

    python benchmarks/search_cost/run.py
    python benchmarks/search_cost/run.py --run out    # out: finished, of recipes/finetune_sd.py --search zero_shot

Literal formulation, from the formulas: for every candidate one pass over a batch with a retained backward per sample,
every gradient kept, and one pass per mini-batch for ZiCo, every gradient kept. Ours: one probe for all candidates. One
12-block DiT of width 384, batch 16, 4 candidates, on the same calls; each side in a process of its own, so that its
peak memory is its own. About 5 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import ROOT, facts, load_literal, print_rows, save
from models import make_call, small_dit

from autoprog_diffusion.growth import find_adapter, select_blocks
from autoprog_diffusion.growth.units import Layout, Unit, trained_units
from autoprog_diffusion.search.ntk import condition_number, parameter_grams, unit_grams
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.recorded_calls import RecordedCall
from autoprog_diffusion.search.zico import parameter_scores, unit_zico


reference = load_literal("reference")
BATCH, SEED = 16, 0


def weights_of(units: list[Unit]) -> list[str]:
    return [name for unit in units for name in unit.parameters if "weight" in name]


def literal(
    model: nn.Module, layout: Layout, calls: list[RecordedCall], candidates: list[tuple[int, ...]]
) -> list[tuple]:
    layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    scores = []
    for blocks in candidates:
        names = weights_of(trained_units(layout, blocks))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        kappa = reference.literal_condition_number(reference.literal_gram(model, calls[0], names))
        scores.append((kappa, literal_zico_kept(model, calls, [name for name in names if name in layers])))
    return scores


def literal_zico_kept(model: nn.Module, calls: list[RecordedCall], names: list[str]) -> float:
    """The literal ZiCo with one backward a mini-batch and every gradient kept, as the released code does."""
    wanted = [dict(model.named_parameters())[name] for name in names]
    kept = [torch.autograd.grad(call.run(model), wanted, call.gradient) for call in calls]
    total = 0.0
    for gradients in zip(*kept):
        stacked = torch.stack(gradients).double()
        std = stacked.std(dim=0, unbiased=False)
        inner = float((stacked.abs().mean(0) / std)[std > 0].sum())
        total += torch.tensor(inner, dtype=torch.float64).log().item() if inner > 0 else 0.0
    return total


def ours(
    model: nn.Module, layout: Layout, calls: list[RecordedCall], candidates: list[tuple[int, ...]]
) -> list[tuple]:
    with leaving_no_trace(model):
        zico = unit_zico(model, layout, parameter_scores(model, calls))
        grams = unit_grams(layout, parameter_grams(model, calls[0]))
    scores = []
    for blocks in candidates:
        names = [unit.name for unit in trained_units(layout, blocks)]
        gram = torch.stack([grams[name] for name in names if grams[name].dim()]).sum(0)
        scores.append((condition_number(gram), sum(zico[name] for name in names)))
    return scores


def count_passes(model: nn.Module, counts: dict[str, int]) -> None:
    """Count forward calls of the model and calls of the autograd engine."""
    model.register_forward_hook(lambda *_: counts.__setitem__("forward", counts["forward"] + 1))
    engine = torch.autograd.graph._engine_run_backward

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts["backward"] += 1
        return engine(*args, **kwargs)

    torch.autograd._engine_run_backward = counted


def child(side: str) -> None:
    """Measure one side: seconds, extra peak memory over a training step, passes and scores; printed as JSON."""
    torch.manual_seed(SEED)
    model, inputs = small_dit(2 * BATCH, width=384)
    layout = find_adapter(model).layout(model)
    batches = [{name: value.split(BATCH)[k] for name, value in inputs.items()} for k in range(2)]
    calls = [make_call(model, batch) for batch in batches]
    candidates = [select_blocks("interleaved", 12, level / 4) for level in range(1, 5)]
    model.eval()
    calls[0].run(model).backward(calls[0].gradient)  # what training itself needs
    for parameter in model.parameters():
        parameter.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {"forward": 0, "backward": 0}
    count_passes(model, counts)
    started = time.perf_counter()
    scores = {"literal": literal, "ours": ours}[side](model, layout, calls, candidates)
    seconds = time.perf_counter() - started
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "extra_mib": extra, **counts, "scores": scores}))


def measure(side: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_share(folder: Path) -> dict[str, float]:
    """Search seconds of a finished run, and their share of its training time."""
    values = json.loads((folder / "growth.json").read_text(encoding="utf-8"))
    searching = sum(decision["seconds"] for decision in values["decisions"])
    return {"search_seconds": searching, "share": searching / values["seconds"]["training"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run with a search; without it one is started")
    parser.add_argument("--child", choices=("literal", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    sides = {side: measure(side) for side in ("literal", "ours")}
    shown = ("seconds", "extra_mib", "forward", "backward")
    print_rows("one search", [{"side": side, **{key: row[key] for key in shown}} for side, row in sides.items()])
    ratios = {key: sides["literal"][key] / max(sides["ours"][key], 1e-9) for key in ("seconds", "extra_mib")}
    scores = [torch.tensor(sides[side]["scores"], dtype=torch.float64) for side in ("ours", "literal")]
    error = float((scores[0] / scores[1] - 1).abs().max())
    print(f"largest relative difference of kappa and ZiCo over 4 candidates: {error:.1e}")
    folder = args.run
    if folder is None:
        folder = Path(tempfile.mkdtemp())
        flags = ["--search", "zero_shot", "--output_dir", str(folder), "--overwrite_output_dir"]
        subprocess.run([sys.executable, str(ROOT / "recipes" / "finetune_sd.py"), *flags], check=True)
    share = run_share(folder)
    print(
        f"a run with a search takes {share['search_seconds']:.1f} s for it: {share['share']:.2%} of its training time"
    )
    result = {"sides": sides, "ratios": ratios, "largest_error": error, "run": share}
    save(Path(__file__).with_name("summary.json"), {**facts(SEED), **result})


if __name__ == "__main__":
    main()
