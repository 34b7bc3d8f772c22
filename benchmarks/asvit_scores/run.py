"""Scores of As-ViT without training: speed and agreement against the formulation of the released code.

    python benchmarks/asvit_scores/run.py                  # both sizes, about 3 CPU minutes, nearly all of it literal
    python benchmarks/asvit_scores/run.py --sizes 32       # the small one

Literal: one backward per feature channel and chunk of six points (length distortion), two per channel (curvature), one
retained backward per sample with all weight gradients kept (NTK). Ours: one forward-mode pass for the first, one pass
of second order for curvature and Gauss map, one forward and one backward for the NTK. Five initialisations, ten
points, 16 images, one thread; times are CPU seconds of the process. At 224 pixels there is one initialisation, the
literal side runs on a part of the channels and samples and its time is multiplied up, its forward pass with it, so the
ratios there are upper bounds (those at 32 pixels are complete); agreement is checked on that part. The
literal Gauss map is not timed: its cost grows with the square of the channels (tests compare it on small networks).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, load_literal, save

from autoprog_diffusion.search.recorded_calls import RecordedCall
from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.asvit.features import (
    FeatureModel,
    feature_condition_numbers,
    initial_states,
    without_norms,
)
from autoprog_diffusion.vit.asvit.length_distortion import angles, curve_scores, random_plane


reference, curves = load_literal("reference"), load_literal("reference_curves")
SEED, SAMPLES = 0, 16


@dataclass(frozen=True)
class Size:
    """A network, and how many channels and samples the literal side takes: None for all."""

    genotype: str
    pixels: int
    repeats: int
    channels: int | None = None
    curvature_channels: int | None = None
    samples: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.pixels, self.pixels)


SIZES = {
    32: Size("8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,16", 32, repeats=5),
    224: Size("8,2,3|4,1,2|4,1,4|4,1,6|32", 224, repeats=1, channels=4, curvature_channels=2, samples=2),
}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def first(channels: int | None) -> Callable[..., Tensor]:
    return lambda model, images: model.features(images)[:, :channels]


def measure(size: Size) -> dict[str, Any]:
    """Seconds, speed-up and largest relative difference of every metric at one size."""
    torch.manual_seed(SEED)
    model = AsViT(Genotype.parse(size.genotype), 1, size.pixels)
    width = model.genotype.widths[-1]
    states = initial_states(model, model.reset_parameters, size.repeats, SEED)
    images = torch.randn(SAMPLES, *size.shape)
    curve_scores(model, AsViT.features, size.shape, states[:1], points=2)  # imports of torch.func
    fast = {
        "length": timed(lambda: curve_scores(model, AsViT.features, size.shape, states))[0],
        "curvature": timed(lambda: curve_scores(model, AsViT.features, size.shape, states, second_order=True))[0],
        "ntk": timed(lambda: feature_condition_numbers(model, AsViT.features, images, states))[0],
    }
    slow = dict.fromkeys(fast, 0.0)
    errors = dict.fromkeys((*fast, "gauss_length"), 0.0)
    for repeat, state in enumerate(states):
        model.load_state_dict(state)
        for name, seconds, pairs in (*compare_curves(size, model, repeat), compare_ntk(size, model, images)):
            part, whole = {
                "length": (size.channels, width), "curvature": (size.curvature_channels, width),
                "ntk": (size.samples, SAMPLES),
            }[name]  # fmt: skip
            slow[name] += seconds * whole / (part or whole)
            for metric, ours, theirs in pairs:
                errors[metric] = max(errors[metric], abs(ours / theirs - 1))
    seconds = {name: (fast[name], slow[name]) for name in fast}
    seconds["length + ntk"] = (fast["length"] + fast["ntk"], slow["length"] + slow["ntk"])
    # The pass of second order holds the length and the Gauss map too.
    seconds["everything"] = (fast["curvature"] + fast["ntk"], sum(slow.values()))
    return {
        **asdict(size),
        "cpu_seconds": {name: {"ours": a, "literal": b, "ratio": b / a} for name, (a, b) in seconds.items()},
        "largest_relative_difference": errors,
    }


Compared = tuple[str, float, list[tuple[str, float, float]]]  # score, literal seconds, (metric, ours, literal)


def compare_curves(size: Size, model: AsViT, repeat: int) -> tuple[Compared, Compared]:
    """Length, then curvature and Gauss map (from the literal derivatives), on a part of the channels."""
    plane, run = random_plane(size.shape, repeat), FeatureModel(model, AsViT.features)
    with without_norms(model):
        length_seconds, v = timed(lambda: curves.literal_velocity(run, plane, angles(), channels=size.channels))
        seconds, (w, a) = timed(
            lambda: curves.literal_derivatives(run, plane, angles(), channels=size.curvature_channels)
        )
    (one,) = curve_scores(model, first(size.channels), size.shape, seed=repeat)
    (two,) = curve_scores(model, first(size.curvature_channels), size.shape, seed=repeat, second_order=True)
    w, a = w.double(), a.double()
    turning = ((a / w.norm(dim=1, keepdim=True)) - w * ((a * w).sum(1) / w.norm(dim=1) ** 3)[:, None]).norm(dim=1)
    second = [
        ("curvature", two.curvature, curves.literal_curvature(w, a)),
        ("gauss_length", two.gauss_length, float(turning.sum())),
    ]
    lengths = [("length", one.length, curves.literal_length(v))]
    return ("length", length_seconds, lengths), ("curvature", seconds, second)


def compare_ntk(size: Size, model: AsViT, images: Tensor) -> Compared:
    """One retained backward over the whole batch for every sample of a part."""
    wrapped, count = FeatureModel(model, AsViT.features), size.samples or SAMPLES
    parts = ("model.embed", "model.merges", "model.stages")  # what the features depend on
    names = [name for name, _ in wrapped.named_parameters() if name.startswith(parts) and "weight" in name]
    call = RecordedCall((images,), {}, torch.zeros(SAMPLES))
    seconds, gram = timed(lambda: reference.literal_gram(wrapped, call, names, samples=count))
    (kappa,) = feature_condition_numbers(model, AsViT.features, images[:count])
    return "ntk", seconds, [("ntk", kappa, reference.literal_condition_number(gram))]


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['genotype']} at {row['pixels']} pixels, {row['repeats']} initialisation(s); CPU seconds")
    print(f"{'':14}{'ours':>10}{'literal':>12}{'ratio':>8}   largest relative difference")
    for name, cell in row["cpu_seconds"].items():
        error = row["largest_relative_difference"].get(name)
        text = "" if error is None else f"{error:.1e}"
        print(f"{name:14}{cell['ours']:10.2f}{cell['literal']:12.1f}{cell['ratio']:7.0f}x   {text}")
    print(f"{'Gauss map':44}   {row['largest_relative_difference']['gauss_length']:.1e}")
    if row["channels"]:
        print(
            f"literal: {row['channels']} channels of the length, {row['curvature_channels']} of the curvature and "
            f"{row['samples']} samples of the NTK were run, and multiplied up: upper bounds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("summary.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in args.sizes:
        rows.append(measure(SIZES[size]))
        show(rows[-1])
    save(args.output, {**facts(SEED), "sizes": rows})


if __name__ == "__main__":
    main()
