"""Every flag has a class: what must be equal is refused with both values, what is applied is applied and said."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import pytest
import torch

from autoprog_diffusion.growth import GrowthConfig, StateError
from autoprog_diffusion.training.arguments import flat, growth_config
from autoprog_diffusion.training.flag_classes import APPLIED, EXTENDABLE, MUST_BE_EQUAL, NO_FLAGS
from autoprog_diffusion.training.history import (
    applied_line,
    check_same_run,
    note_start,
    read_starts,
    settings_of,
)
from autoprog_diffusion.training.run import Script, ready, run
from autoprog_diffusion.vit.asvit.training import Retokenization
from autoprog_diffusion.vit.training.finetuning import Finetuning, growth_of
from autoprog_diffusion.vit.training.pretraining import Pretraining

from .conftest import Script as Launched
from .conftest import load_recipe


NAMES = {
    "finetune_sd": "FinetuneSD", "finetune_sdxl": "FinetuneSDXL", "finetune_dit": "FinetuneDiT",
    "finetune_flow": "FinetuneFlow", "finetune_lora": "FinetuneLora", "dreambooth": "FinetuneSubject",
}  # fmt: skip
RECIPES: dict[str, Any] = {name: getattr(load_recipe(name), kind)() for name, kind in NAMES.items()}
VIT: dict[str, Script[Any, Any]] = {"pretrain": Pretraining(), "finetune": Finetuning()}
SCRIPTS = {**RECIPES, **VIT}
ALL = {**SCRIPTS, "asvit train": Retokenization()}
PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
# One flag of every kind: what is drawn, in which order, by which model, at which rate and with which growth.
REFUSED = {
    "--seed": ("5", 0, 5),
    "--train_batch_size": ("9", None, 9),
    "--gradient_accumulation_steps": ("2", 1, 2),
    "--snr_gamma": ("5", None, 5.0),
    "--mixed_precision": ("bf16", None, "bf16"),
    "--max_train_samples": ("64", None, 64),
    "--resolution": ("32", None, 32),
    "--random_flip": (None, False, True),
    "--no-cache_latents": (None, True, False),
    "--use_ema": (None, False, True),
    "--growth": ("off", "on", "off"),
    "--direction": ("unfreeze", None, "unfreeze"),
    "--num_stages": ("3", 4, 3),
    "--boundaries": ("0.2 0.4 0.6", None, [0.2, 0.4, 0.6]),
    "--train_data_dir": ("elsewhere", None, "elsewhere"),
    "--pretrained_model_name_or_path": ("other", "model", "other"),
}
OWN_FLAGS = {
    "finetune_sd": (), "finetune_sdxl": ("--proportion_empty_prompts", "0.5"), "finetune_dit": ("--no-variance_loss",),
    "finetune_flow": ("--weighting_scheme", "none"), "finetune_lora": ("--rank", "7"),
    "dreambooth": ("--prior_loss_weight", "2"), "pretrain": ("--operator", "momentum"),
    "finetune": ("--order", "prefix"),
}  # fmt: skip
FREE = "--output_dir other --overwrite_output_dir --checkpointing_steps 3 --checkpoints_total_limit 1 --report_to all "
FREE += "--validation_steps 3 --log_interval 2 --resume_from_checkpoint latest --logging_dir other"
FREE_OF_RECIPES = "--validation_prompts a b --num_inference_steps 3 --guidance_scale 1 --dataloader_num_workers 2 "
FREE_OF_RECIPES += "--gradient_checkpointing --cache_dir other --checkpointing auto --memory_gb 24"


def first_flags(name: str) -> list[str]:
    return ["--pretrained_model_name_or_path", "model"] if name in RECIPES else []


def noted(name: str) -> list[dict[str, Any]]:
    """The starts of a run with default flags."""
    return [{"step": 0, "num_processes": 1, "settings": settings_of(SCRIPTS[name].parse(first_flags(name)))}]


def flags_of(kind: Any) -> set[str]:
    """Names of the flags of a group, and of the groups in it; what a script sets itself is none."""
    found = set()
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            found |= flags_of(hint)
        elif get_origin(hint) is not Annotated:
            found.add(name)
    return found


def test_every_flag_of_every_script_has_one_class() -> None:
    for name in ALL:
        flags = flags_of(type(ALL[name].parse([])))
        assert len(flags) > 40
        lists = (MUST_BE_EQUAL, APPLIED, EXTENDABLE)
        wrong = {flag: sum(flag in names for names in lists) for flag in flags}
        assert {flag for flag, count in wrong.items() if count != 1} == set()
        assert set(flat(settings_of(ALL[name].parse([])))) >= NO_FLAGS


def test_the_classes_name_no_flag_that_is_gone() -> None:
    known = set().union(*(flags_of(type(script.parse([]))) for script in ALL.values()))
    assert (MUST_BE_EQUAL | APPLIED | EXTENDABLE) - known == set()


def test_the_page_states_the_classes() -> None:
    rows = dict(re.findall(r"^\| (must be equal|applied|extendable) \|(.*)\|$", PAGE.read_text(), re.MULTILINE))
    stated = {kind: set(re.findall(r"`(\w+)`", row)) for kind, row in rows.items()}
    assert stated == {"must be equal": MUST_BE_EQUAL, "applied": APPLIED, "extendable": EXTENDABLE}


# Every flag with two recipes of six, which take turns: all of them ask one function, and classes are of all flags.
IN_TURN = [(flag, list(RECIPES)[(turn + k) % 6]) for turn, flag in enumerate(REFUSED) for k in (0, 3)]


@pytest.mark.parametrize(("flag", "name"), IN_TURN)
def test_a_flag_that_changes_what_is_trained_is_refused_with_both_values(tmp_path: Path, name: str, flag: str) -> None:
    words, before, now = REFUSED[flag]
    args = SCRIPTS[name].parse([*first_flags(name), flag, *(words or "").split()])
    with pytest.raises(StateError) as caught:
        check_same_run(noted(name), args, 1, tmp_path)
    field = flag.replace("--no-", "--")
    assert f"{field} was {'' if before is None else repr(before)}" in str(caught.value)
    assert f"now {now!r}" in str(caught.value)
    assert "Resume with its own flags, or choose another --output_dir" in str(caught.value)


def test_all_flags_that_differ_are_named_a_script_s_own_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in OWN_FLAGS:
        tmp_path = tmp_path_factory.mktemp("case")
        own = OWN_FLAGS[name]
        args = SCRIPTS[name].parse([*first_flags(name), "--seed", "3", *own])
        with pytest.raises(StateError) as caught:
            check_same_run(noted(name), args, 1, tmp_path)
        named = {words.split()[0] for words in str(caught.value).split(": ", 1)[1].split("; ")}
        assert named == {"--seed", *(word.replace("--no-", "--") for word in own[:1])}


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    args = SCRIPTS["finetune_sd"].parse(first_flags("finetune_sd"))
    with pytest.raises(StateError, match="the number of processes was 1, now 2"):
        check_same_run(noted("finetune_sd"), args, 2, tmp_path)


def test_where_a_run_is_written_and_how_fast_it_is_read_may_change(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in SCRIPTS:
        tmp_path = tmp_path_factory.mktemp("case")
        own = FREE_OF_RECIPES if name in RECIPES else "--workers 2"
        args = SCRIPTS[name].parse([*first_flags(name), *FREE.split(), *own.split()])
        check_same_run(noted(name), args, 1, tmp_path)
        check_same_run(read_starts(tmp_path / "no run.json"), SCRIPTS[name].parse(["--seed", "7"]), 1, tmp_path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_applied_or_extends_the_run_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    rate = "--learning_rate" if name in RECIPES else "--lr"
    decay = "--adam_weight_decay" if name in RECIPES else "--weight_decay"
    flags = [*first_flags(name), rate, "0.125", decay, "0.5", "--max_train_steps", "9999", "--output_dir", "x"]
    args = SCRIPTS[name].parse(flags)
    check_same_run(noted(name), args, 1, tmp_path)
    line = applied_line(noted(name), args)
    assert line is not None
    old = flat(noted(name)[0]["settings"])
    for flag, value in ((rate, "0.125"), (decay, "0.5"), ("--max_train_steps", "9999")):
        assert f"{flag} {value} (was {old[flag[2:]]})" in line
    assert line.startswith("resumed with --")
    assert len(line.splitlines()) == 1
    assert "output_dir" not in line
    assert applied_line(noted(name), SCRIPTS[name].parse(first_flags(name))) is None


def test_the_history_keeps_every_start_and_the_first_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    # Of a version that kept no history.
    file.write_text(json.dumps({"train": {"seed": 3}}))
    note_start(file, read_starts(file), {"step": 5, "settings": {"train": {"seed": 4}}})
    note_start(file, read_starts(file), {"step": 7, "settings": {"train": {"seed": 5}}})
    values = json.loads(file.read_text())
    assert values["train"]["seed"] == 3
    assert [(start["step"], start["settings"]["train"]["seed"]) for start in values["starts"]] == [
        (0, 3), (5, 4), (7, 5)]  # fmt: skip
    file.write_text("{")
    with pytest.raises(StateError, match=r"run\.json, the settings of the run, cannot be read"):
        read_starts(file)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_refused_resume_leaves_the_run_as_it_was(script: Launched, tmp_path: Path) -> None:
    recipe = RECIPES["finetune_sd"]
    flags = [*script.flags(tmp_path / "out"), "--cache_dir", str(tmp_path / "hub"), "--checkpointing_steps", "2"]
    flags += ["--train_batch_size", "4", "--max_train_steps", "4", "--validation_prompts", "a"]
    run(recipe, recipe.parse(flags))
    file = tmp_path / "out" / "run.json"
    settings = file.read_bytes()
    newest = ["--resume_from_checkpoint", "latest"]
    with pytest.raises(StateError, match=r"--train_batch_size was 4, now 8; --seed was 0, now 5\."):
        ready(recipe, recipe.parse([*flags, *newest, "--seed", "5", "--train_batch_size", "8"]))
    assert file.read_bytes() == settings
    # From another folder: the run of the checkpoint decides.
    elsewhere = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint"]
    elsewhere.append(str(tmp_path / "out" / "checkpoints" / "checkpoint-2"))
    with pytest.raises(StateError, match=r"--seed was 0, now 5\."):
        ready(recipe, recipe.parse([*flags, *elsewhere, "--seed", "5"]))
    trainer = ready(recipe, recipe.parse([*flags, *newest, "--checkpointing_steps", "3"]))
    assert trainer.step == 4
    values = json.loads(file.read_text())
    assert values["train"] == json.loads(settings)["train"]
    assert values["starts"][0] == json.loads(settings)["starts"][0]
    assert [(start["step"], start["steps"], start["num_processes"]) for start in values["starts"]] == [
        (0, 4, 1), (4, 4, 1)]  # fmt: skip
    assert [start["settings"]["output"]["checkpointing_steps"] for start in values["starts"]] == [2, 3]
    assert values["starts"][1]["versions"]["torch"] == torch.__version__
    assert values["starts"][1]["identity"]["images"] == 24


@pytest.mark.usefixtures("fresh_accelerate")
def test_settings_may_change_before_the_first_checkpoint(script: Launched, tmp_path: Path) -> None:
    recipe = RECIPES["finetune_sd"]
    flags = [*script.flags(tmp_path / "out"), "--cache_dir", str(tmp_path / "hub"), "--train_batch_size", "4"]
    flags += ["--max_train_steps", "4", "--validation_prompts", "a", "--resume_from_checkpoint", "latest"]
    ready(recipe, recipe.parse(flags))
    assert ready(recipe, recipe.parse([*flags, "--seed", "5"])).step == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["train"]["seed"] == 5


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_the_paper_as_one_flag_and_other_flags_win(name: str) -> None:
    def config(*flags: str) -> GrowthConfig:
        args = RECIPES[name].parse(["--growth", "autoprog_zero", *flags])
        return growth_config(args.growth, multiple=8, ema_decay=None, seed=0)[0]

    assert config() == GrowthConfig.autoprog_zero()
    assert config("--stage_dropout", "0.2") == GrowthConfig.autoprog_zero(stage_dropout=0.2)
    other = config("--search", "none", "--order", "prefix")
    assert other == GrowthConfig.autoprog_zero(search="none", order="prefix")


def test_every_script_has_the_one_default() -> None:
    for name, recipe in RECIPES.items():
        config, _ = growth_config(recipe.parse([]).growth, multiple=8, ema_decay=None, seed=0)
        assert config == GrowthConfig(stage_embedding=name != "finetune_lora")
    config, _ = growth_of(VIT["finetune"].parse([]), multiple=8)
    assert config == GrowthConfig(stage_embedding=False, search_batches=8)


def test_the_paper_on_a_classifier_has_no_stage_embedding_and_full_resolution() -> None:
    config, _ = growth_of(VIT["finetune"].parse(["--growth", "autoprog_zero"]), multiple=8)
    assert config == GrowthConfig.autoprog_zero(stage_embedding=False, stage_dropout=0.0, resolutions=None)
