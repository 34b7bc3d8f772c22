"""`vit/asvit.py`: every sub-command end to end on a tiny problem, resumed, and refused in words."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from autoprog_diffusion.commands import train
from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.training.run_file import read_run_file
from autoprog_diffusion.vit.asvit import AsViT, Genotype, GenotypeError
from autoprog_diffusion.vit.asvit.arguments import PRESETS, TrainArguments, parse, parse_space
from autoprog_diffusion.vit.asvit.commands import main, read_genotype
from autoprog_diffusion.vit.asvit.genotype import ZOO
from autoprog_diffusion.vit.asvit.training import Retokenization

from .pretraining import make_npz, start


ROOT = Path(__file__).resolve().parents[2]
TINY = "4,2,2|2,1,2|2,1,2|2,1,2|16,16"
SCORES = "--img_size 32 --repeats 1 --images noise --ntk_batch 2".split()
SPACE = "--space K1=4 E1=2,3 E2=2 E3=2 E4=2,3 H=16,32".split()
SEARCH = ["search", *SCORES, *SPACE, "--steps", "4", "--population", "3", "--tournament", "2"]
TRAIN = (
    f"train --genotype {TINY} --img_size 32 --batch_size 8 --max_train_steps 8 --warmup_steps 2 --lr 3e-3 --crop pad "
    "--mixup 0.2 --drop_path 0.1 --model_ema_decay 0.5 --checkpointing_steps 3 --boundaries 0.25 0.5"
).split()


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def picture_width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.size[0]


@pytest.mark.parametrize("method", ["evolution", "reinforce"])
def test_search_then_scale(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, family = str(tmp_path / "search"), str(tmp_path / "family")
    main([*SEARCH, "--method", method, "--output_dir", found])
    result = read(tmp_path / "search" / "search.json")
    assert len(result["trace"]) == 4
    assert len(result["rewards"]) == (4 if method == "reinforce" else 0)
    assert {row["genotype"] for row in result["evaluations"]} == {*result["trace"], result["genotype"]}
    assert picture_width(tmp_path / "search" / "search.png") > 800
    assert "chosen" in capsys.readouterr().out
    main(["scale", *SCORES, "--genotype", found, "--budget_params", "2.4e6", "--num_classes", "3",
          "--output_dir", family])  # fmt: skip
    members = read(tmp_path / "family" / "family.json")["family"]
    assert len(members) >= 2
    for member in members:
        genotype = Genotype.parse(member["genotype"])
        assert genotype.choices == Genotype.parse(result["genotype"]).choices
        assert sum(p.numel() for p in AsViT(genotype, 3, 32).parameters()) == member["params"] <= 2.4e6
    assert picture_width(tmp_path / "family" / "family.png") > 800
    assert read_genotype(family, 0).depths == (1, 1, 1, 1)
    assert str(read_genotype(family)) == members[-1]["genotype"]


def test_a_search_that_was_stopped_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    main([*SEARCH, "--output_dir", str(whole)])
    cache = read(whole / "evaluations.json")
    part.mkdir()
    cut = {**cache, "evaluations": cache["evaluations"][:2]}
    (part / "evaluations.json").write_text(json.dumps(cut))
    with pytest.raises(SystemExit, match="holds an earlier search: continue it with --resume"):
        main([*SEARCH, "--output_dir", str(part)])
    main([*SEARCH, "--output_dir", str(part), "--resume"])
    assert read(part / "evaluations.json") == cache
    first, second = read(whole / "search.json"), read(part / "search.json")
    assert (first["evaluated_now"], second["evaluated_now"]) == (4, 2)
    assert (first["genotype"], first["trace"]) == (second["genotype"], second["trace"])
    with pytest.raises(SystemExit, match="other settings .seed was 0, now 1"):
        main([*SEARCH, "--output_dir", str(part), "--resume", "--seed", "1"])


def test_the_kernel_is_measured_on_the_users_images(tmp_path: Path) -> None:
    data = make_npz(tmp_path, size=32)
    flags = [*SEARCH, "--steps", "2", "--train_data", str(data), "--images", "data"]
    main([*flags, "--output_dir", str(tmp_path / "data")])
    main([*SEARCH, "--steps", "2", "--output_dir", str(tmp_path / "noise")])
    on_data, on_noise = (read(tmp_path / name / "evaluations.json") for name in ("data", "noise"))
    assert len(on_data["settings"]["images"]) == 64  # a digest: other images are other scores
    pairs = list(zip(on_data["evaluations"], on_noise["evaluations"]))
    assert all(a["genotype"] == b["genotype"] and a["length"] == b["length"] for a, b in pairs)
    assert all(a["ntk"] != b["ntk"] for a, b in pairs)


@pytest.mark.parametrize("retokenization", ["on", "off"])
def test_train_leaves_a_network_that_loads(tmp_path: Path, retokenization: str) -> None:
    data, out = make_npz(tmp_path, size=32), tmp_path / "out"
    main([*TRAIN, "--train_data", str(data), "--output_dir", str(out), "--retokenization", retokenization])
    growth = read(out / "growth.json")
    strides = [stage.get("stride") for stage in growth["plan"]["stages"]]
    assert strides == ([16, 8, 4] if retokenization == "on" else [None])
    flops = [stage["flops"] for stage in growth["stages"]]
    assert flops == sorted(set(flops))  # fewer tokens, fewer FLOPs, counted anew in every stage
    assert read(out / "config.json")["label_names"] == ["class 0", "class 1", "class 2"]
    model = AsViT.from_pretrained(out)
    assert not model.training
    assert model.embed.proj.stride == (4, 4)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert (out / "timeline.png").exists()


def test_a_training_is_repeated_by_its_run_file(tmp_path: Path) -> None:
    data = make_npz(tmp_path, size=32)
    first = tmp_path / "first"
    again = tmp_path / "again"
    main([*TRAIN, "--max_train_steps", "3", "--train_data", str(data), "--output_dir", str(first)])
    file = read_run_file(first / "run.yaml")
    assert file.recipe == "asvit"
    assert file.values["genotype"].words == (str(Genotype.parse(TINY)),)
    AcceleratorState._reset_state(reset_partial_state=True)
    train.run(["--config", str(first / "run.yaml"), "--output_dir", str(again)])
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_a_run_file_is_of_a_training(tmp_path: Path) -> None:
    for words in (["search", "--config", "run.yaml"], ["--config", str(tmp_path / "none.yaml")]):
        with pytest.raises(SystemExit, match="--config"):
            main(words)


@pytest.mark.parametrize("stop", [4, 7])
def test_training_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    """Stopped in two stages, after checkpoints at steps 3 and 6."""
    data = make_npz(tmp_path, size=32)
    whole, part = tmp_path / "whole", tmp_path / "part"
    flags = [*TRAIN, "--train_data", str(data)]
    main([*flags, "--output_dir", str(whole)])
    AcceleratorState._reset_state(reset_partial_state=True)
    args = parse([*flags, "--output_dir", str(part)])
    assert isinstance(args, TrainArguments)
    args = dataclasses.replace(args, genotype=str(Genotype.parse(TINY)))
    part.mkdir()
    trainer = start(Retokenization(), args)

    def die(step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(die)
    AcceleratorState._reset_state(reset_partial_state=True)
    main([*flags, "--output_dir", str(part), "--resume_from_checkpoint", "latest"])
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read(part / "growth.json")["history"] == read(whole / "growth.json")["history"]


def test_a_run_of_other_strides_is_not_resumed(tmp_path: Path) -> None:
    flags = [*TRAIN, "--train_data", str(make_npz(tmp_path, size=32)), "--output_dir", str(tmp_path / "out")]
    main(flags)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match=r"--strides was \[16, 8, 4\], now \[8, 4, 4\]. Resume with its own flags"):
        main([*flags, "--strides", "8", "4", "4", "--resume_from_checkpoint", "latest"])


BAD_INPUT_ENDS = [
    (["scale", "--genotype", "8,2|4,1,2|4,1,4|4,1,6|32"], r"part '8,2' should be K1,S1,E1"),
    (["scale", "--genotype", "9,2,3|4,1,2|4,1,4|4,1,6|32", "--budget_params", "1e7"], "K1 .kernel. is 9"),
    (["scale", "--budget_params", "1e5"], "over the budget .budget_params 100,000"),
    (["scale"], "scaling needs an end: set budget_params"),
    (["search", "--img_size", "40"], "image size 40 is not a multiple of 32"),
    (["search", "--img_size", "32", "--space", "S1=3"], "S1: .3. is not in the space"),
    (["search", "--img_size", "32", "--space", "K1"], "--space K1 is not of the form"),
    (["search", "--img_size", "32", "--steps", "2", "--population", "1"], "a tournament between 1"),
    (["train", "--img_size", "72"], "image size 72 is not a multiple of 32"),
    (["train", "--genotype", "nowhere"], "genotype 'nowhere' has 1 parts"),
    (["train", "--preset", "tpu"], "--preset tpu is not known"),
    (["search", "--repeats", "0"], "--repeats 0 is not allowed"),
]


def test_bad_input_ends_with_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    for words, named in BAD_INPUT_ENDS:
        tmp_path = tmp_path_factory.mktemp("case")
        scores = ["--images", "noise"] if words[0] != "train" else []
        place = ["--output_dir", str(tmp_path / "out")]
        with pytest.raises(SystemExit, match=f"^error: .*{named}"):
            main([*words, *scores, *place])


def test_strides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    flags = [*TRAIN, "--train_data", str(make_npz(tmp_path, size=32)), "--output_dir", str(tmp_path / "out")]
    for strides, named in ((("64", "8", "4"), "stride of 64"), (("6", "5", "4"), "stride 6"),
                           (("16", "8", "8"), "must end with"), (("16", "4"), "has 2 values")):  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(SystemExit, match=named):
            main([*flags, "--overwrite_output_dir", "--strides", *strides])


def test_read_genotype_names_what_is_missing(tmp_path: Path) -> None:
    assert {name: str(read_genotype(name)) for name in ZOO} == {n: str(Genotype.parse(z)) for n, z in ZOO.items()}
    with pytest.raises(GenotypeError, match="neither family.json nor search.json"):
        read_genotype(str(tmp_path))
    (tmp_path / "search.json").write_text('{"best": 1}')
    with pytest.raises(GenotypeError, match="search.json holds no genotype"):
        read_genotype(str(tmp_path))
    (tmp_path / "family.json").write_text(json.dumps({"family": [{"genotype": TINY}]}))
    with pytest.raises(GenotypeError, match="member 3 does not exist"):
        read_genotype(str(tmp_path), 3)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    AsViT(Genotype.parse(TINY), 3, 32).save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GenotypeError, match="holds no complete As-ViT checkpoint"):
        AsViT.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace('"num_classes": 3', '"num_classes": 4'))
    with pytest.raises(GenotypeError, match="size mismatch"):
        AsViT.from_pretrained(tmp_path)
    config.write_text("{}")
    with pytest.raises(GenotypeError, match="genotype"):
        AsViT.from_pretrained(tmp_path)


def test_a_flag_after_the_preset_wins() -> None:
    assert set(PRESETS["cpu"]) == {"search", "scale", "train"}
    args = parse(["search", "--preset", "cpu", "--steps", "7"])
    assert (args.steps, args.score.img_size) == (7, 64)
    assert parse(["train", "--preset=cpu", "--genotype", "small"]).genotype == "small"
    with pytest.raises(ConfigError, match="K1=x"):
        parse_space(["K1=x"])


def test_the_script_runs_from_the_root_of_the_repository(tmp_path: Path) -> None:
    command = [sys.executable, "vit/asvit.py", *SEARCH, "--steps", "1", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(read(tmp_path / "search.json")["scores"]["ntk"]))
