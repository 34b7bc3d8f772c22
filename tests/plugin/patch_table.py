"""The table of `docs/patching.md`: every training script of Diffusers, patched by the command and run.

    DIFFUSERS_CHECKOUT=<folder> python tests/plugin/patch_table.py docs/patching.json [WORD ...]

With words, only the scripts whose path holds one of them are run; the other rows stay as they are in the file. Scripts
run in forks of this process, so that none imports torch and Diffusers again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


if __package__:
    from . import pipelines
    from .rows import BY_PATH, Row, write_conditioned
    from .scripts import CHECKOUT, CONFIG, OFF
else:  # as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from plugin import pipelines
    from plugin.rows import BY_PATH, Row, write_conditioned
    from plugin.scripts import CHECKOUT, CONFIG, OFF

from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.errors import PatchError
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import CONFIG_WITHOUT_EMBEDDING, patch


COMMIT = "58eb52c080"
LIMIT = 600  # seconds of one run
TWO = "GrowthConfig(num_stages=2, min_trainable=0.5"


def scripts(examples: Path) -> list[Path]:
    """Every training script, without those for flax."""
    return sorted(path for path in examples.rglob("train_*.py") if "flax" not in path.name)


def patch_row(path: Path, examples: Path) -> tuple[dict[str, Any], str]:
    """What the command makes of a script, as a row of the table, and the patched text."""
    row: dict[str, Any] = {"script": path.relative_to(examples).as_posix()}
    try:
        found = analyse(read_source(path))
    except PatchError as refused:
        return row | {"patched": False, "line": refused.line, "reason": refused.reason}, ""
    new = patch(found)
    compile(new, str(path), "exec")
    row |= {"patched": True, "model": found.denoiser.name, "class": found.denoiser.class_name}
    row["stage_embedding"] = found.no_embedding or "as the model has one"
    return row, new.decode(found.source.module.encoding)


def configured(text: str, *, off: bool) -> str:
    """A patched script whose growth is off, or has two stages."""
    embedding = ", stage_embedding=False" if CONFIG_WITHOUT_EMBEDDING in text else ""
    config = OFF if off else f"{TWO}{embedding})"
    return text.replace(CONFIG_WITHOUT_EMBEDDING, CONFIG).replace(CONFIG, config)


@dataclass
class Bench:
    """Pipelines and pictures on disk, and the runs of scripts.

    Attributes:
        folder: Holds all of them.
        examples: Diffusers' scripts.
    """

    folder: Path
    examples: Path

    def prepare(self) -> None:
        """Save the pictures, and import what the scripts import."""
        pipelines.write_images(self.folder / "images", captions=True)
        pipelines.write_images(self.folder / "instances", captions=False)
        write_conditioned(self.folder / "conditioned")
        import_hosts()

    def pipeline(self, row: Row) -> Path:
        """The tiny pipeline of a row, made once."""
        folder = self.folder / "pipelines" / row.build.__name__
        return folder if folder.exists() else pipelines.save_pipeline(row.build, folder)

    def run(self, row: Row, script: Path, output: Path, *extra: str) -> str:
        """Run a script to its end; returns why it failed, or nothing."""
        places = {"pipeline": self.pipeline(row), "images": self.folder / "images"}
        places |= {name: self.folder / name for name in ("instances", "conditioned")}
        flags = [flag.format(**places) for flag in row.flags]
        common = ["--output_dir", str(output), "--gradient_accumulation_steps", "2", "--checkpointing_steps", "2"]
        log = output.with_suffix(".log")
        output.parent.mkdir(parents=True, exist_ok=True)
        status = run_forked([str(script), *flags, *common, *extra], log)
        return "" if status == 0 else last_error(log)

    def measure(self, row: Row, text: str) -> dict[str, Any]:
        """Run a script unpatched, patched with growth off and with two stages, and resumed; what came of it."""
        folder = self.folder / "runs" / row.path.replace("/", "-").removesuffix(".py")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        failed = self.run(row, self.examples / row.path, folder / "plain" / "out")
        if failed:
            return {"runs": False, "why": f"unpatched, on the tiny pipeline: {failed}"}
        for name in ("off", "two"):
            place = folder / name / "train.py"
            place.parent.mkdir()
            place.write_text(configured(text, off=name == "off"), encoding="utf-8")
            # A script may import its neighbours.
            for neighbour in (self.examples / row.path).parent.glob("*.py"):
                if not neighbour.name.startswith("train_"):
                    shutil.copy(neighbour, place.parent)
        failed = self.run(row, folder / "off" / "train.py", folder / "off" / "out")
        if failed:
            return {"runs": False, "why": f"growth off: {failed}"}
        equal, different = compare(folder / "plain" / "out", folder / "off" / "out")
        found: dict[str, Any] = {"equal": equal, "different": different}
        failed = self.run(row, folder / "two" / "train.py", folder / "two" / "out")
        found["runs"] = not failed
        if failed:
            return found | {"why": f"two stages: {failed}"}
        moved = compare(folder / "plain" / "out", folder / "two" / "out")[1]
        found["changed_by_growth"] = moved
        if row.resumes:
            found["resumed"] = self.resume(row, folder)
        return found

    def resume(self, row: Row, folder: Path) -> str:
        """Whether a run that is cut off at its checkpoint and resumed ends as the whole one; or why it does not."""
        if not (folder / "two" / "out" / "checkpoint-2").exists():
            return "no checkpoint at the boundary of stages"
        found = self.resumed(row, folder / "two" / "train.py", folder / "two" / "out", folder / "again")
        if found == "equal":
            return found
        # The script itself may not resume.
        own = self.resumed(row, self.examples / row.path, folder / "plain" / "out", folder / "plain_again")
        return f"{found}; the unpatched script: {own}"

    def resumed(self, row: Row, script: Path, whole: Path, folder: Path) -> str:
        """Resume a script from a run's first checkpoint; `equal`, or how it differs, or why it fails."""
        again = folder / "out"  # some scripts name files after it
        again.mkdir(parents=True)
        shutil.copytree(whole / "checkpoint-2", again / "checkpoint-2")
        failed = self.run(row, script, again, "--resume_from_checkpoint", "latest")
        if failed:
            return failed
        equal, different = compare(whole, again)
        return "equal" if not different else f"{different} of {equal + different} tensors differ"


def compare(one: Path, other: Path) -> tuple[int, int]:
    """How many tensors of all safetensors below two folders are equal, and how many differ or are in one alone."""
    from safetensors.torch import load_file

    def tensors(folder: Path) -> dict[str, Any]:
        files = {path.relative_to(folder).as_posix(): load_file(path) for path in folder.rglob("*.safetensors")}
        return {f"{name}:{key}": tensor for name, file in files.items() for key, tensor in file.items()}

    ours = tensors(one)
    theirs = tensors(other)
    names = ours.keys() | theirs.keys()
    if not names:
        raise ValueError(f"nothing is saved below {one}")
    same = [name for name in names if name in ours and name in theirs and ours[name].equal(theirs[name])]
    return len(same), len(names) - len(same)


def import_hosts() -> None:
    """Import what is slow to import, before the forks."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers.training_utils  # noqa: F401
    import peft  # noqa: F401
    import torch
    import torchvision.transforms  # noqa: F401
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def run_forked(command: list[str], log: Path) -> int:
    """Run a script with its arguments in a fork, its output in a file; returns its exit status, 124 out of time."""
    child = os.fork()
    if child == 0:
        os._exit(be_script(command, log))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def be_script(command: list[str], log: Path) -> int:
    """Run a script in this process, with seed 0."""
    import random
    import runpy
    import traceback

    import datasets
    import numpy as np
    import torch

    # What another run has cached would be loaded, and leave the generators in another state.
    datasets.config.HF_DATASETS_CACHE = log.with_suffix(".cache")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")
    os.chdir(log.parent)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    status = 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0) if isinstance(end.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def last_error(log: Path) -> str:
    """The last line of an error message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return (named or ["it ran out of time"])[-1][:300]


def main(output: Path, words: list[str]) -> None:
    """Write the table as JSON."""
    assert CHECKOUT is not None, "set DIFFUSERS_CHECKOUT to a checkout of Diffusers"
    examples = Path(CHECKOUT).resolve() / "examples"
    known = {}
    if output.exists():
        known = {row["script"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(os.environ.get("PATCH_TABLE_FOLDER", folder)), examples)
        bench.prepare()
        for path in scripts(examples):
            name = path.relative_to(examples).as_posix()
            if words and words != ["--analyse"] and not any(word in name for word in words):
                continue
            row, text = patch_row(path, examples)
            run = None if words == ["--analyse"] else BY_PATH.get(name)
            if row["patched"] and run is not None:
                row["run"] = bench.measure(run, text)
            known[name] = row
            print(name, row.get("run", row["patched"]), flush=True)
            write(output, [known[one] for one in sorted(known)])


def write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows that there are."""
    text = json.dumps({"commit": COMMIT, "rows": rows}, indent=1)
    output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
