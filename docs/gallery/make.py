"""Make the gallery: five examples, each a run of a recipe from its run file, with a picture and a row of results.

    python docs/gallery/make.py                # all five, about 20 minutes on an idle core
    python docs/gallery/make.py --only style   # one of them
    python docs/gallery/make.py --pictures     # draw again what is there

Data, models and runs are written below runs/gallery; the data and the model of an example are made once. The examples
`classes` and `vit` fetch Fashion-MNIST with apt-get (31 MB), the others need no network. `python
benchmarks/check_numbers.py --write` then puts the numbers of results.json into docs/gallery.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gallery_pictures as pictures
from examples import BY_NAME, EXAMPLES, HERE, ROOT, Example

from autoprog_diffusion.files import METRICS_FILE, write_text_atomically


RESULTS = HERE / "results.json"
DIGITS = 4
PREPARED = "prepare_cpu_minutes"  # what data and model took


def main(argv: Sequence[str] | None = None) -> None:
    """Make the examples that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BY_NAME, default=list(BY_NAME), help="examples")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of runs that are there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the numbers")
    args = parser.parse_args(argv)
    for name in args.only:
        example = BY_NAME[name]
        if not args.pictures:
            keep(args.results, name, run(example))
        pictures.draw(example)


def run(example: Example, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare, train and measure an example.

    Args:
        example: Which one.
        extra: Flags that win over its run file.

    Returns:
        Its row of results.
    """
    start = clock()
    example.prepare()
    prepared = clock()
    words = ["train", "--config", str(example.run_file.relative_to(ROOT)), "--overwrite_output_dir", *extra]
    print(f"autoprog-diffusion {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "autoprog_diffusion", *words], check=True, cwd=ROOT)
    done = clock()
    return {
        "title": example.title,
        "command": f"autoprog-diffusion train --config {example.run_file.relative_to(ROOT)}",
        PREPARED: minutes(start["cpu"], prepared["cpu"]),
        "cpu_minutes": minutes(prepared["cpu"], done["cpu"]),
        "minutes": minutes(prepared["wall"], done["wall"]),
        **measured(example.output),
    }


def clock() -> dict[str, float]:
    """Seconds of wall time, and of the CPU: this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"wall": time.monotonic(), "cpu": sum(usage.ru_utime + usage.ru_stime for usage in used)}


def minutes(start: float, end: float) -> float:
    """Between two times in seconds."""
    return round((end - start) / 60, DIGITS)


def measured(output: Path) -> dict[str, Any]:
    """What a run says of itself: steps, and the held-out loss or the accuracy before and after."""
    report = json.loads((output / "growth.json").read_text(encoding="utf-8"))
    found = {"steps": report["plan"]["num_training_steps"]}
    held_out = output / "held_out.json"
    if held_out.is_file():
        losses = json.loads(held_out.read_text(encoding="utf-8"))
        before = losses["evaluations"][0]["loss"]
        after = losses["best"]["loss"]
        return {**found, **change("held-out loss", before, after, "{:.3f}"), "images": losses["images"]}
    rows = json.loads((output / METRICS_FILE).read_text(encoding="utf-8"))["validations"]
    chance = 1 / len(json.loads((output / "config.json").read_text(encoding="utf-8"))["id2label"])
    return {**found, **change("accuracy, before: chance", 100 * chance, 100 * rows[-1]["ema_accuracy"], "{:.1f} %")}


def change(measure: str, before: float, after: float, layout: str) -> dict[str, Any]:
    """A measure before and after, as numbers and as text for a table that has several measures."""
    return {
        "measure": measure,
        "before": before,
        "after": after,
        "before_text": layout.format(before),
        "after_text": layout.format(after),
    }


def keep(path: Path, name: str, row: dict[str, Any]) -> None:
    """Write the row of an example beside those of the others, in their order; what is made once keeps its time."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    before = rows.get(name, row)[PREPARED]
    rows[name] = {**row, PREPARED: max(row[PREPARED], before)}
    ordered = {example.name: rows[example.name] for example in EXAMPLES if example.name in rows}
    write_text_atomically(path, json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
