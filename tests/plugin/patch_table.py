"""The table of `docs/patching.md`: every training script of Diffusers, patched by the command and run.

    DIFFUSERS_CHECKOUT=<folder> python tests/plugin/patch_table.py docs/patching.json [--analyse | --tests] [WORD ...]

With words, only the scripts whose path holds one of them are looked at; the other rows stay as they are in the file.
`--analyse` runs nothing, `--tests` Diffusers' own tests of the patched scripts. Scripts run in forks of this process,
so that none imports torch and Diffusers again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


if __package__:
    from . import pipelines
    from .data_folders import FOLDERS
    from .forks import import_hosts, last_error, run_forked
    from .row import Row
    from .rows import BY_PATH
    from .scripts import CHECKOUT, OFF
    from .theirs import THEIRS, TheirTests
else:  # as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from plugin import pipelines
    from plugin.data_folders import FOLDERS
    from plugin.forks import import_hosts, last_error, run_forked
    from plugin.row import Row
    from plugin.rows import BY_PATH
    from plugin.scripts import CHECKOUT, OFF
    from plugin.theirs import THEIRS, TheirTests

from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.errors import PatchError
from autoprog_diffusion.patching.options import Options, config_of, takes_average
from autoprog_diffusion.patching.parts import Training
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import patch


COMMIT = "58eb52c080"
TWO = "GrowthConfig(num_stages=2, min_trainable=0.5"


def scripts(examples: Path) -> list[Path]:
    """Every training script, without those for flax."""
    return sorted(path for path in examples.rglob("train_*.py") if "flax" not in path.name)


def patch_row(path: Path, examples: Path) -> tuple[dict[str, Any], Training | None]:
    """What the command makes of a script, as a row of the table, and what it found."""
    row: dict[str, Any] = {"script": path.relative_to(examples).as_posix()}
    try:
        found = analyse(read_source(path))
    except PatchError as refused:
        return row | {"patched": False, "line": refused.line, "reason": refused.reason}, None
    compile(patch(found), str(path), "exec")
    row |= {"patched": True, "model": found.denoiser.name, "class": found.denoiser.class_name}
    row["stage_embedding"] = found.no_embedding or "as the model has one"
    row["average"] = takes_average(found, Options())
    return row, found


def configured(found: Training, *, off: bool) -> str:
    """A patched script whose growth is off and has no average, or has two stages and the average it is given."""
    options = Options(average="off" if off else "auto")
    text = patch(found, options).decode(found.source.module.encoding)
    config = config_of(found, options)
    assert text.count(config) == 1
    embedding = ", stage_embedding=False" if found.no_embedding else ""
    return text.replace(config, OFF if off else f"{TWO}{embedding})")


@dataclass
class Bench:
    """Pipelines and pictures on disk, and the runs of scripts.

    Attributes:
        folder: Holds all of them.
        examples: Diffusers' scripts.
    """

    folder: Path
    examples: Path

    def pipeline(self, row: Row) -> Path:
        """The tiny pipeline of a row, made once."""
        folder = self.folder / "pipelines" / row.build.__name__
        return folder if folder.exists() else pipelines.save_pipeline(row.build, folder)

    def places(self, row: Row) -> dict[str, Path]:
        """Name -> folder of the pipeline and the data that a row names, made once."""
        texts = [*row.flags, *(change.new for change in row.changes)]
        named = [name for name in FOLDERS if any(f"{{{name}}}" in text for text in texts)]
        folders = {name: self.folder / name for name in named}
        made = {name: place if place.exists() else FOLDERS[name](place) for name, place in folders.items()}
        return made | {"pipeline": self.pipeline(row)}

    def changed(self, row: Row, text: str) -> str:
        """A script, or a neighbour of it, with a row's changes."""
        for change in row.changes:
            new = change.new
            for name, place in self.places(row).items():
                new = new.replace(f"{{{name}}}", str(place))
            text = text.replace(change.old, new)
        return text

    def place(self, row: Row, text: str, folder: Path) -> Path:
        """Write a script into a folder, with the neighbours that it may import."""
        original = self.examples / row.path
        files = {path: path.read_text(encoding="utf-8") for path in original.parent.glob("*.py")}
        files = {path: found for path, found in files.items() if not path.name.startswith(("train_", "test_"))}
        files[original] = text
        folder.mkdir()
        unchanged = "".join(files.values())
        missing = [change.old for change in row.changes if change.old not in unchanged]
        assert not missing, f"{row.path} has no {missing} to replace"
        for path, found in files.items():
            (folder / path.name).write_text(self.changed(row, found), encoding="utf-8")
        return folder / original.name

    def run(self, row: Row, script: Path, output: Path, *extra: str) -> str:
        """Run a script to its end; returns why it failed, or nothing."""
        places = self.places(row)
        flags = [flag.format(**places) for flag in row.flags]
        common = ["--output_dir", str(output), "--gradient_accumulation_steps", "2"]
        if row.resumes:
            common += ["--checkpointing_steps", "2"]
        log = output.with_suffix(".log")
        output.parent.mkdir(parents=True, exist_ok=True)
        status = run_forked([str(script), *flags, *common, *extra], log, stand_ins=row.stand_ins)
        return "" if status == 0 else last_error(log)

    def measure(self, row: Row, patched: Training) -> dict[str, Any]:
        """Run a script unpatched, patched with growth off and with two stages, and resumed; what came of it."""
        folder = self.folder / "runs" / row.path.replace("/", "-").removesuffix(".py")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        original = (self.examples / row.path).read_text(encoding="utf-8")
        texts = {"plain": original, "off": configured(patched, off=True)}
        texts["two"] = configured(patched, off=False)
        files = {name: self.place(row, content, folder / name) for name, content in texts.items()}
        failed = self.run(row, files["plain"], folder / "plain" / "out")
        if failed:
            return {"runs": False, "why": f"unpatched, on the tiny pipeline: {failed}"}
        failed = self.run(row, files["off"], folder / "off" / "out")
        if failed:
            return {"runs": False, "why": f"growth off: {failed}"}
        equal, different = compare(folder / "plain" / "out", folder / "off" / "out")
        found: dict[str, Any] = {"equal": equal, "different": different}
        failed = self.run(row, files["two"], folder / "two" / "out")
        found["runs"] = not failed
        if failed:
            return found | {"why": f"two stages: {failed}"}
        moved = compare(folder / "plain" / "out", folder / "two" / "out")[1]
        found["changed_by_growth"] = moved
        found["froze"] = "stage 2 of 2" in (folder / "two" / "out.log").read_text(encoding="utf-8", errors="replace")
        found["loads"] = self.loads(row, folder / "two" / "out")
        if row.resumes:
            found["resumed"] = self.resume(row, folder)
        return found

    def loads(self, row: Row, output: Path) -> str:
        """`yes` if plain Diffusers loads what a run has left, every weight of it; or why it does not."""
        log = output.with_name("loading.log")
        loader = Path(__file__).with_name("load_result.py")
        status = run_forked([str(loader), str(self.pipeline(row)), str(output)], log)
        return "yes" if status == 0 else last_error(log)

    def resume(self, row: Row, folder: Path) -> str:
        """Whether a run that is cut off at its checkpoint and resumed ends as the whole one; or why it does not."""
        if not (folder / "two" / "out" / "checkpoint-2").exists():
            return "no checkpoint at the boundary of stages"
        name = Path(row.path).name
        found = self.resumed(row, folder / "two" / name, folder / "two" / "out", folder / "again")
        if found == "equal":
            return found
        # The script itself may not resume.
        own = self.resumed(row, folder / "plain" / name, folder / "plain" / "out", folder / "plain_again")
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


def main(output: Path, words: list[str]) -> None:
    """Write the table as JSON."""
    assert CHECKOUT is not None, "set DIFFUSERS_CHECKOUT to a checkout of Diffusers"
    examples = Path(CHECKOUT).resolve() / "examples"
    known = {}
    if output.exists():
        known = {row["script"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    mode = words.pop(0) if words[:1] in (["--analyse"], ["--tests"]) else ""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(os.environ.get("PATCH_TABLE_FOLDER", folder)), examples)
        import_hosts()
        for path in scripts(examples):
            name = path.relative_to(examples).as_posix()
            if words and not any(word in name for word in words):
                continue
            old = known.get(name, {})
            row, found = patch_row(path, examples)
            row |= {kind: old[kind] for kind in ("run", "tests") if found is not None and kind in old}
            if found is not None and mode == "--tests":
                row |= their_tests(bench.folder, name)
            elif found is not None and not mode and name in BY_PATH:
                row["run"] = bench.measure(BY_PATH[name], found) | described(BY_PATH[name])
            known[name] = row
            print(name, row.get("tests" if mode == "--tests" else "run", row["patched"]), flush=True)
            write(output, [known[one] for one in sorted(known)])


def their_tests(folder: Path, name: str) -> dict[str, Any]:
    """Results of Diffusers' own tests on a patched script, as a part of its row; nothing where there are none."""
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    passed = run = own = 0
    for theirs in THEIRS:
        if theirs.script == name:
            place = folder / "tests" / f"{len(list(folder.glob('tests/*')))}"
            found = TheirTests(folder, place, environment).run(theirs, grown=True)
            plain = (
                TheirTests(folder, place / "plain", environment).run(theirs, grown=False) if found.failed else found
            )
            passed += len(found.passed)
            run += len(found.passed | found.failed)
            own += len(plain.passed)
    tests = {"run": run, "passed": passed} | ({"unpatched": own} if passed < run else {})
    return {"tests": tests} if run else {}


def described(row: Row) -> dict[str, Any]:
    """What the table says of a run beside its results."""
    whys = list(dict.fromkeys(change.why for change in row.changes))
    found = {"changes": whys, "stand_ins": list(row.stand_ins)}
    return {name: value for name, value in found.items() if value}


def write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows that there are."""
    text = json.dumps({"commit": COMMIT, "rows": rows}, indent=1)
    output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
