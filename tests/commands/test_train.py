"""`autoprog-diffusion train`, `families` and `completion`: the recipes, as the installed package holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoprog_diffusion.command_line import launch_words, program_name, script_name, typed_command
from autoprog_diffusion.commands import completion, families
from autoprog_diffusion.commands import main as program
from autoprog_diffusion.commands.train import RECIPES, described
from autoprog_diffusion.tasks.families import FAMILY_OF
from autoprog_diffusion.tasks.loading import RECIPES as FULL

from ..tasks.conftest import forget


ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    return ended.value.code


def test_every_recipe_of_the_repository_is_a_recipe_of_the_command() -> None:
    scripts = {entry.script for entry in RECIPES.values()}
    assert all((ROOT / script).is_file() for script in scripts)
    found = {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")} - {"recipes/__init__.py"}
    assert found - scripts == {"recipes/minimal.py"}  # one loop, to read and to copy
    assert {f"vit/{name}.py" for name in ("pretrain", "finetune", "asvit")} <= scripts


def test_a_recipe_goes_by_the_name_that_its_run_files_have() -> None:
    for name, entry in RECIPES.items():
        if entry.kind:
            recipe = getattr(entry.load(), entry.kind)()
            assert recipe.name == name
            assert {"output_dir", "seed", "growth"} <= set(recipe.flags())


def test_the_bundled_models_lie_in_the_package() -> None:
    module = RECIPES["sd"].load()
    assert module.__name__ == "autoprog_diffusion.recipes.finetune_sd"
    assert (module.FinetuneSD.default_model / "model_index.json").is_file()


def test_help_names_the_command_and_not_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    assert "accelerate launch --num_processes 2 -m autoprog_diffusion train sd" in capsys.readouterr().out
    assert run("train") == program.USAGE
    for name, entry in RECIPES.items():
        if entry.kind is not None:
            text = described(name, entry.load().__doc__ or "")
            assert entry.script not in text
            assert f"autoprog-diffusion train {name} " in text


def test_an_unknown_recipe_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "sdx") == program.USAGE
    assert "there is no recipe 'sdx'" in (error := capsys.readouterr().err)
    assert "Did you mean sdxl?" in error


def test_a_file_may_name_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\n")
    assert run("train", "--config", str(file)) == program.FAILED
    assert "names no recipe" in capsys.readouterr().err
    assert run("train", "--seed", "1") == program.FAILED
    assert "no recipe is named" in capsys.readouterr().err
    (tmp_path / "output").write_text("a file")
    file.write_text(f"recipe: sd\noutput_dir: {tmp_path / 'output'}\n")
    try:
        assert "cannot be written" in str(run("train", "--config", str(file)))
    finally:
        forget()


def test_flags_that_cannot_be_read_are_a_usage_error() -> None:
    assert run("train", "sd", "--no_such_flag") == program.USAGE


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'tyro.conf'", name="tyro.conf")

    monkeypatch.setattr(families, "run", fail)
    assert run("families") == program.FAILED
    assert 'needs tyro, which is not installed: pip install "autoprog-diffusion"' in capsys.readouterr().err


def test_families_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("families", "--json") == 0
    rows = {row["pipeline"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(FULL)
    assert set(FAMILY_OF) <= set(rows)
    assert [name for name, row in rows.items() if row["videos"]] == ["WanPipeline"]
    assert [name for name, row in rows.items() if not row["buckets"]] == ["DiTPipeline"]
    for field in ("lora", "dreambooth"):
        assert [name for name, row in rows.items() if row[field] is None] == ["PixArtSigmaPipeline", "DiTPipeline"]
    documented = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert not [name for name in rows if f"(`{name}`)" not in documented]
    assert run("families") == 0
    assert "StableDiffusionXL" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "script"
    file.write_text(completion.bash(program.COMMANDS, completion.all_flags(program.COMMANDS)))
    return file


OFFERED: dict[str, set[str]] = {
    "pl": {"plan"},
    "train s": {"sd", "sdxl"},
    "train --c": {"--config"},
    "train sd --learning": {"--learning_rate"},
    "train lora --no-use_d": {"--no-use_dora"},
    "train sd --optimizer adamw8": {"adamw8bit", "adamw8bit_bnb"},
    "plan sdxl --direction w": {"window"},
    "train sd --train_data_dir ": set(),  # bash completes names of files
}


def test_bash_completes(bash_script: Path) -> None:
    for typed, offered in OFFERED.items():
        words = ["autoprog-diffusion", *typed.split(" ")]
        quoted = " ".join(f"'{word}'" for word in words)
        code = f"source {bash_script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; {completion.FUNCTION}; "
        command = ["bash", "-c", code + 'echo "${COMPREPLY[@]}"']
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert set(done.stdout.split()) == offered, typed


def test_fish_knows_every_flag() -> None:
    flags = completion.all_flags(["plan"])
    text = completion.fish(program.COMMANDS, flags)
    assert "-l direction -x -a 'unfreeze freeze window'" in text or "-l direction -x -a" in text
    assert all(f" -l {flag.name}" in text for known in flags.values() for flag in known)


def test_a_command_is_told_as_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ["/env/site-packages/autoprog_diffusion/__main__.py", "train", "sd", "--seed", "1"]
    typed = ["autoprog-diffusion", "train", "sd", "--seed", "1"]
    assert typed_command(module) == typed_command(["/env/bin/autoprog-diffusion", *typed[1:]]) == typed
    assert typed_command(["a.py", "-x"]) == ["a.py", "-x"]
    assert launch_words(typed, 1) == typed
    assert launch_words(["a.py"], 1) == ["accelerate", "launch", "a.py"]
    assert launch_words(["a.py"], 2) == ["torchrun", "--nproc_per_node", "2", "a.py"]
    assert script_name(typed) == "autoprog-diffusion train sd"
    assert script_name(["recipes/a.py", "train"]) == "a.py"
    monkeypatch.setattr(sys, "argv", module)
    assert program_name() == "autoprog-diffusion train sd"


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "autoprog_diffusion", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: autoprog-diffusion train RECIPE")
