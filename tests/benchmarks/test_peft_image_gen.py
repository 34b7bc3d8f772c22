"""PEFT's protocol on the bundled model, and on a tiny FLUX.2 Klein with a tiny DINOv2, as a GPU would run it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..tasks.tiny_families import build_flux2
from ..tasks.tiny_transformers import save


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(autouse=True)
def run(benchmark_folder: Callable[[str], Path]) -> Any:
    benchmark_folder("peft_image_gen")
    return importlib.import_module("run")


def squares(count: int) -> list[Any]:
    subject = importlib.import_module("subject")
    return [subject.Picture(Image.new("RGB", (32, 32), (9 * n, 90, 90)), f"sks {n}") for n in range(count)]


def test_the_split_is_that_of_peft() -> None:
    subject = importlib.import_module("subject")
    found = subject.split(squares(20))
    names = [[int(one.prompt[4:]) for one in part] for part in (found.train, found.validation, found.test)]
    # numpy.random.seed(0); numpy.random.shuffle(numpy.arange(20))
    assert names == [[18, 1, 19, 8, 10, 17, 6, 13, 4, 2, 5, 14, 9, 7], [16, 11], [3, 0, 15, 12]]
    with pytest.raises(SystemExit, match="6 pictures are too few"):
        subject.split(squares(6))


def test_the_subject_has_ears_and_an_expression() -> None:
    subject = importlib.import_module("subject")
    mouse = subject.with_ears(Image.new("RGB", (64, 64), (255, 204, 77)))
    assert mouse.size == (64, 64)
    assert mouse.getpixel((32, 40)) == (77, 204, 255)
    assert mouse.getpixel((10, 10)) == (255, 170, 200)
    assert mouse.getpixel((32, 4)) == (255, 255, 255)
    assert len(set(subject.FACES)) == 20


def test_measures_are_those_of_peft() -> None:
    import torch

    judge = importlib.import_module("judge")
    vectors = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (-1.0, 0.0)}

    def see(names: Any) -> torch.Tensor:
        return torch.tensor([vectors[name] for name in names])

    assert judge.similarity(see, ["a", "b"], ["a", "a"]) == 0.5
    assert judge.drift(see, ["a", "b"], ["a", "b"]) == 0
    assert judge.drift(see, ["a"], ["c"]) == 1


def test_rates_are_chosen_on_one_seed_and_others_are_reported(run: Any, tmp_path: Path) -> None:
    common = importlib.import_module("common")
    runs = common.Runs(tmp_path / "runs.jsonl")
    took = {"end": 1, "memory": 2**20, "training_flops": 1.0, "training_cpu_seconds": 2.0, "file_bytes": 2**20}

    def add(method: str, seed: int, rate: float, similarity: float) -> None:
        likeness = {"similarity": similarity, "validation_similarity": similarity, "drift": 0.1}
        runs.add(
            {"case": "bundled", "method": method, "seed": seed, "rate": rate, **likeness, **took, "device": "cpu"}
        )

    case = importlib.import_module("cases").CASES["bundled"]
    add("full", 0, case.full_rates[0], 0.5)
    add("full", 0, case.full_rates[1], 0.7)
    later = list(run.jobs(case, ["full", "full_stopped"], 2, runs, "bundled"))
    assert [(job.method, job.seed, job.rate) for job in later[-2:]] == [
        ("full", 1, case.full_rates[1]), ("full_stopped", 1, case.full_rates[1]),
    ]  # fmt: skip
    assert [row["seeds"] for row in run.table(runs)] == [1]
    add("full", 1, case.full_rates[1], 0.6)
    (row,) = run.table(runs)
    assert (row["similarity"], row["rate"], row["seeds"]) == (0.6, case.full_rates[1], 1)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that put tiny things in place of what the Hub has."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("klein")
    model = save(root / "model", build_flux2)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(root / "dino")
    size = {"height": 28, "width": 28}
    BitImageProcessor(size=size, crop_size=size).save_pretrained(root / "dino")
    (root / "images").mkdir()
    for number in range(20):
        Image.new("RGB", (40, 32), (9 * number, 90, 90)).save(root / "images" / f"{number:02}.png")
    names = {"model": model, "images": root / "images", "features": root / "dino"}
    flags = [word for name, value in names.items() for word in (f"--{name}", str(value))]
    return [*flags, "--case", "klein", "--steps", "4", "--size", "32", "--inference_steps", "1"]


@pytest.mark.slow
# Under autocast the weights of Flux.2's norms stay float32.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_a_tiny_klein_is_taught_in_every_kind_of_way(run: Any, klein: list[str], tmp_path: Path) -> None:
    methods = ["full_stopped", "window", "lora_grown"]
    flags = [*klein, "--results", str(tmp_path), "--strips", str(tmp_path / "strips"), "--seeds", "2"]
    run.main([*flags, "--only", *methods])
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    tuned = ["start", "full", "window", "lora"]
    assert [row["method"] for row in rows] == [*tuned, *methods]
    trained = {row["method"]: row["trained_parameters"] for row in rows[1:]}
    assert trained["window"] < trained["full"]
    assert trained["lora_grown"] == trained["lora"]
    assert all(0 <= row["drift"] <= 1 for row in rows)
    assert rows[0]["drift"] == 0
    table = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert {row["method"] for row in table} == {*tuned, *methods}
    assert (tmp_path / "klein_samples.png").stat().st_size > 1000
