"""The machine that is planned for: its memory, and how fast it computes, measured or guessed."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autoprog_diffusion.files import write_text_atomically

from .errors import PlannerError
from .work import Work


GPUS = Path(__file__).with_name("gpus.json")
GIB = 2**30
CONTEXT = 0.6e9  # bytes of a card that the CUDA context takes
RESERVE = 0.03  # share of a card that fragments are left with
# A guess at what training reaches of a data sheet's numbers.
REACHED = {"products": 0.5, "convolutions": 0.35, "attention": 0.35, "bandwidth": 0.7}
HEAD = 1  # size of a head from which on a guessed speed of attention holds
CALL_SECONDS = 5e-6  # of a kernel's launch
STEP_PASSES = 10  # times that AdamW's step reads or writes four bytes a parameter
DEFAULT_FILE = Path("~/.cache/autoprog_diffusion/calibration.json")


@dataclass(frozen=True)
class Calibration:
    """How fast a machine computes.

    Attributes:
        device: Its name.
        dtype: Type that matrix products run in.
        products: FLOP/s of matrix products.
        convolutions: FLOP/s of convolutions.
        attention: Numbers in a head -> FLOP/s of fused attention with such heads.
        bandwidth: Bytes/s that other operations read and write.
        call: Seconds that any operation takes at least.
        optimizer: Seconds a parameter of AdamW's step.
        measured: Whether this machine was measured, or its numbers are a guess.
    """

    device: str
    dtype: str
    products: float
    convolutions: float
    attention: dict[int, float]
    bandwidth: float
    call: float
    optimizer: float
    measured: bool = True

    def seconds(self, work: Work, trained: int = 0) -> float:
        """Time of some operations, and of the optimizer's step of `trained` parameters."""
        compute = work.products / self.products
        compute += work.convolutions / self.convolutions
        compute += sum(self._attention_seconds(head) * flops for head, flops in work.attention.items())
        return compute + work.moved / self.bandwidth + work.calls * self.call + trained * self.optimizer

    def _attention_seconds(self, head: int) -> float:
        """Seconds a FLOP of attention, from the sizes of a head that were measured.

        A score of a query and a key costs 4 FLOPs a number in a head. Its seconds are straight lines between the sizes
        measured, as they are of a fixed part and one for each number. Below the smallest they stay, since a head
        fills no register there; above the largest it is the speed that stays.

        Args:
            head: Numbers in a head.
        """
        if head >= max(self.attention):
            return 1 / self.attention[max(self.attention)]
        sizes = sorted(self.attention)
        score = np.interp(head, sizes, [4 * size / self.attention[size] for size in sizes])
        return float(score) / (4 * head)

    def save(self, path: Path) -> None:
        """Write the numbers as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(
            path,
            json.dumps(asdict(self), indent=1) + "\n",
        )

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            PlannerError: The file is missing, or no calibration.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            speeds = {int(head): speed for head, speed in values.pop("attention").items()}
            return cls(**values, attention=speeds)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlannerError(
                f"{path} is no calibration ({error}): `autoprog-diffusion calibrate` writes one."
            ) from error


@dataclass(frozen=True)
class Machine:
    """What is planned for.

    Attributes:
        name: For people; empty where only an amount of memory was given.
        bytes: Memory that a training step may take.
        calibration: How fast it is; None where nothing is known.
    """

    name: str
    bytes: float
    calibration: Calibration | None = None


@cache
def known_gpus() -> dict[str, dict[str, Any]]:
    """Name of a GPU -> its row."""
    return {row["name"]: row for row in json.loads(GPUS.read_text(encoding="utf-8"))["gpus"]}


def find_gpu(name: str) -> Machine:
    """A GPU by its name, with guessed speeds.

    Raises:
        PlannerError: It is unknown; the message has the nearest ones.
    """
    known = known_gpus()
    key = (
        name.lower()
        .replace("rtx", "")
        .replace("nvidia", "")
        .replace(
            "geforce",
            "",
        )
        .replace(
            "_",
            "-",
        )
        .strip(" -")
    )
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
        meant = f"Did you mean {' or '.join(near)}? " if near else ""
        raise PlannerError(
            f"--gpu {name} is not known. {meant}Known are {', '.join(known)}; for another one give --memory_gb."
        )
    row = known[key]
    return Machine(
        key,
        row["gib"] * GIB * (1 - RESERVE) - CONTEXT,
        guess(key, row["tflops"], row["gbps"]),
    )


def memory_machine(gigabytes: float) -> Machine:
    """A machine of which only the memory is known, all of which a step may take.

    Args:
        gigabytes: In 10^9 bytes.

    Raises:
        PlannerError: It is not above 0.
    """
    if not 0 < gigabytes < float("inf"):
        raise PlannerError(f"--memory_gb {gigabytes} is impossible: give a number above 0, in 10^9 bytes.")
    return Machine("", gigabytes * 1e9)


def guess(name: str, tflops: float, gbps: float) -> Calibration:
    """Speeds of a machine that was not measured, from its data sheet.

    Args:
        name: Of the machine.
        tflops: Dense bfloat16, in 10^12 FLOP/s.
        gbps: Bandwidth of its memory, in 10^9 bytes/s.
    """
    peak = tflops * 1e12
    bandwidth = gbps * 1e9 * REACHED["bandwidth"]
    return Calibration(
        device=name,
        dtype="bfloat16",
        products=peak * REACHED["products"],
        convolutions=peak * REACHED["convolutions"],
        attention={HEAD: peak * REACHED["attention"]},
        bandwidth=bandwidth,
        call=CALL_SECONDS,
        optimizer=STEP_PASSES * 4 / bandwidth,
        measured=False,
    )


def steady(tflops: float) -> Calibration:
    """A machine that reaches a speed in everything, of which nothing else is known.

    Args:
        tflops: In 10^12 FLOP/s.

    Raises:
        PlannerError: It is not above 0.
    """
    if not tflops > 0:
        raise PlannerError(f"--tflops {tflops} is impossible: give the speed that training reaches, above 0.")
    speed = tflops * 1e12
    return Calibration(
        device="given speed",
        dtype="bfloat16",
        products=speed,
        convolutions=speed,
        attention={HEAD: speed},
        bandwidth=float("inf"),
        call=0.0,
        optimizer=0.0,
        measured=False,
    )
