"""A simulated step on up to 1,024 GPUs: counted FLOPs over a stated speed, counted bytes over published links.

The time of a collective is that of NCCL's own tuning model (src/graph/tuning.cc): a latency per step of the ring or
tree, and bytes over the bandwidth of the slowest link. An all-reduce takes the faster of ring and tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from traffic import Step


GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
BUCKET = 25 * 2**20  # bytes of DDP's buckets
BF16 = 2  # bytes a number that FSDP2 sends under Accelerate's mixed_precision: bf16, parameters and gradients


@dataclass(frozen=True)
class Cluster:
    """What is assumed: nodes of 8 H100 SXM, one network card per GPU.

    Attributes:
        peak_flops: Dense BF16 of an H100 SXM, per second (data sheet).
        utilisation: Share of the peak that forward and backward pass reach (assumed, not measured).
        node: GPUs per node.
        nvlink: Bytes per second and direction of a GPU's NVLink 4 (data sheet: 900 GB/s both ways).
        network: Bytes per second and direction of a GPU's card, InfiniBand NDR (400 Gb/s).
        link_utilisation: Share of the links' speed that NCCL reaches (assumed).
        ring_nvlink: Seconds per step of a ring inside a node (NCCL, protocol Simple); the others likewise.
        ring_network: Between nodes.
        tree_nvlink: Of a tree, inside a node.
        tree_network: Between nodes.
        start: Of every collective.
    """

    peak_flops: float = 989e12
    utilisation: float = 0.4
    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    link_utilisation: float = 0.8
    ring_nvlink: float = 3.4e-6
    ring_network: float = 14e-6
    tree_nvlink: float = 4e-6
    tree_network: float = 14e-6
    start: float = 8.4e-6

    def bandwidth(self, gpus: int) -> float:
        """Bytes per second through every rank: a ring for every card crosses the network at once."""
        links = self.nvlink if gpus <= self.node else min(self.nvlink, self.node * self.network)
        return links * self.link_utilisation

    def ring(self, size: float, gpus: int) -> float:
        """Seconds of an all-gather, reduce-scatter or broadcast of `size` bytes in all."""
        nodes = max(1, gpus // self.node)
        latency = (gpus - nodes) * self.ring_nvlink + (nodes - 1) * self.ring_network
        return self.start + latency + (gpus - 1) / gpus * size / self.bandwidth(gpus)

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce of `size` bytes."""
        nodes = max(1, gpus // self.node)
        hops = (min(gpus, self.node) - 1) * self.tree_nvlink + math.log2(nodes) * self.tree_network
        tree = self.start + 2 * hops + 2 * size / (0.85 * self.bandwidth(gpus))
        return min(tree, 2 * self.ring(size, gpus) - self.start)

    def seconds(self, flops: float) -> float:
        """Seconds of so many FLOPs on one GPU."""
        return flops / (self.peak_flops * self.utilisation)


@dataclass(frozen=True)
class Times:
    """Seconds of one step on one GPU of many: compute and communication of its two passes."""

    forward: float
    backward: float
    forward_sent: float
    backward_sent: float

    @property
    def compute(self) -> float:
        """Without any communication."""
        return self.forward + self.backward

    @property
    def apart(self) -> float:
        """Nothing overlaps."""
        return self.compute + self.forward_sent + self.backward_sent

    @property
    def hidden(self) -> float:
        """Whatever a pass sends is hidden behind its compute, as far as that lasts."""
        return max(self.forward, self.forward_sent) + max(self.backward, self.backward_sent)


def simulate(step: Step, batch: int, backend: str, gpus: int, cluster: Cluster) -> Times:
    """The times of a step with `batch` images per GPU under DDP or FSDP2."""
    forward, backward = (cluster.seconds(batch * flops) for flops in (step.forward, step.backward))
    if backend == "DDP":
        buckets = math.ceil(step.all_reduced() / BUCKET)
        sent = buckets * cluster.all_reduce(step.all_reduced() / buckets, gpus)
        return Times(forward, backward, cluster.ring(step.buffers, gpus) if step.buffers else 0.0, sent)
    first, second = step.gathered(gpus, BF16)
    second += step.scattered(gpus, BF16)
    return Times(forward, backward, *(sum(cluster.ring(size, gpus) for size in sizes) for sizes in (first, second)))


def curve(run: list[Step], batch: int, backend: str, cluster: Cluster) -> dict[str, Any]:
    """Milliseconds of a step of every stage, and of the average step of the run, over `GPUS`."""
    times = [[simulate(step, batch, backend, gpus, cluster) for step in run] for gpus in GPUS]

    def milliseconds(kind: str) -> dict[str, list[float]]:
        rows = {f"stage {k}": [round(1e3 * getattr(row[k], kind), 2) for row in times] for k in range(len(run))}
        rows["run"] = [round(1e3 * sum(getattr(t, kind) for t in row) / len(run), 2) for row in times]
        return rows

    return {"no overlap": milliseconds("apart"), "full overlap": milliseconds("hidden")}


def assumptions() -> dict[str, Any]:
    """What the simulation takes beside the cluster, for the result file."""
    return {"gpus": list(GPUS), "ddp_bucket": BUCKET, "fsdp2_bytes_a_number": BF16}
