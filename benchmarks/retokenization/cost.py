"""What re-tokenization saves: FLOPs and CPU time of a training step at every stride, for As-ViT and for a DeiT-tiny.

    python benchmarks/retokenization/cost.py

Time is CPU time of this process (one thread), the median of interleaved repetitions. `schedule` is the whole run under
the boundaries read off the As-ViT paper's figure: stride 4x until 0.267, 2x until 0.44 of the training, then the
model's own; for the DeiT, whose images a stride of 64 does not divide, 2x until 0.44.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeiTConfig, DeiTForImageClassification


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, save

from autoprog_diffusion.training.measure import counted_flops
from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.models import logits
from autoprog_diffusion.vit.retokenize import Retokenizer, dilation_for


SIZE, BATCH, REPETITIONS, SEED = 224, 2, 5, 0
# Factor of the stride -> share of the training.
PUBLISHED = {4: 80 / 300, 2: 52 / 300, 1: 168 / 300}
WITHOUT_4 = {2: 132 / 300, 1: 168 / 300}


def models() -> dict[str, tuple[nn.Module, dict[int, float]]]:
    """Models with their schedules: an As-ViT with the 4-pixel kernel of the figure, with the seed's 8, a DeiT-tiny."""
    deit = DeiTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    return {
        "As-ViT, K1 = 4": (AsViT(Genotype.parse("4,2,3,2|4,1,2,1|4,1,4,2|4,1,6,1|32,64"), 1000, SIZE), PUBLISHED),
        "As-ViT, K1 = 8": (AsViT(Genotype.parse("8,2,3,2|4,1,2,1|4,1,4,2|4,1,6,1|32,64"), 1000, SIZE), PUBLISHED),
        "DeiT-tiny/16": (DeiTForImageClassification(deit), WITHOUT_4),
    }


def step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One forward and backward pass."""
    F.cross_entropy(logits(model, images), labels).backward()
    model.zero_grad(set_to_none=True)


def measure(model: nn.Module, factors: list[int], repetitions: int) -> list[dict[str, Any]]:
    """FLOPs and CPU seconds of a training step at every multiple of the model's own stride."""
    tokens = Retokenizer(model)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    strides = [tokens.native * factor for factor in factors]
    flops: dict[int, int] = {}
    seconds: dict[int, list[float]] = {stride: [] for stride in strides}
    for repetition in range(repetitions + 1):
        for stride in strides:
            tokens.enter(stride)
            if repetition == 0:
                flops[stride] = counted_flops(lambda: step(model, images, labels))
                continue
            start = time.process_time()
            step(model, images, labels)
            seconds[stride].append(time.process_time() - start)
    tokens.restore()
    times = {stride: statistics.median(values) for stride, values in seconds.items()}
    full = tokens.native
    return [
        {
            "stride": stride,
            "dilation": dilation_for(stride, tokens.kernel),
            "tokens": (SIZE // stride) ** 2,
            "gflops": flops[stride] / 1e9 / BATCH,
            "flops_percent": 100 * flops[stride] / flops[full],
            "cpu_seconds": times[stride] / BATCH,
            "time_percent": 100 * times[stride] / times[full],
            "spread_percent": 100 * (max(seconds[stride]) - min(seconds[stride])) / times[stride],
        }
        for stride in strides
    ]


def whole_run(rows: list[dict[str, Any]], shares: dict[int, float], key: str) -> float:
    """Percent of full training that a schedule costs."""
    return sum(share * row[key] for share, row in zip(shares.values(), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    found: list[dict[str, Any]] = []
    for name, (model, shares) in models().items():
        rows = measure(model, list(shares), args.repetitions)
        found += [{"model": name, **row} for row in rows]
        whole = {key: whole_run(rows, shares, key) for key in ("flops_percent", "time_percent")}
        found.append({"model": name, "stride": "whole run", "dilation": "", "tokens": "", **whole})
    for row in found:
        print("{model:16} stride {stride!s:10} FLOPs {flops_percent:5.1f} %  time {time_percent:5.1f} %".format(**row))
    save(args.output, {**facts(SEED), "image_size": SIZE, "batch": BATCH, "rows": found})


if __name__ == "__main__":
    main()
