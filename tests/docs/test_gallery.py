"""The gallery: every example has its run file, its picture and its row, the page shows them, and one really runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from autoprog_diffusion.commands.train import RECIPES
from autoprog_diffusion.training.run_file import read_run_file, with_run_file

from .pages import ROOT, module_at


FOLDER = ROOT / "docs" / "gallery"
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
NAMES = ("style", "subject", "classes", "lora", "vit")
MOST_BYTES = 200_000  # of a picture


@pytest.fixture(scope="module")
def make() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield module_at("docs/gallery/make.py")
    sys.path.remove(str(FOLDER))


def test_there_are_the_five_examples(make: ModuleType) -> None:
    assert tuple(make.BY_NAME) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_file_is_read_by_its_recipe(make: ModuleType, name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    entry = RECIPES[read_run_file(path).recipe or ""]
    recipe: Any = getattr(entry.load(), str(entry.kind))()
    args = recipe.parse(with_run_file(["--config", str(path)], recipe.name, recipe.flags()))
    assert ROOT / args.output.output_dir == make.BY_NAME[name].output
    text = path.read_text(encoding="utf-8")
    assert f"runs/gallery/data/{make.BY_NAME[name].folder}/" in text
    assert make.BY_NAME[name].model is None or "runs/gallery/models" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_an_example_as_it_is(make: ModuleType, name: str) -> None:
    example = make.BY_NAME[name]
    assert f"```yaml\n{example.run_file.read_text(encoding='utf-8')}```" in PAGE
    assert f"](images/{example.image.name})" in PAGE
    row = json.loads(make.RESULTS.read_text(encoding="utf-8"))[name]
    assert row["title"] == example.title
    assert row["command"] in PAGE
    assert row["steps"] > 0
    assert row["cpu_minutes"] < 10
    assert example.image.stat().st_size < MOST_BYTES
    with Image.open(example.image) as image:
        assert min(image.size) > 200


def test_rows_keep_their_order_and_the_time_of_what_is_made_once(make: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for name, prepared in (("vit", 2.0), ("style", 0.5), ("vit", 0.0)):
        make.keep(path, name, {make.PREPARED: prepared})
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert list(rows.items()) == [("style", {make.PREPARED: 0.5}), ("vit", {make.PREPARED: 2.0})]


def test_the_flux_begins_with_the_teachers_weights(make: ModuleType) -> None:
    flux = __import__("flux")
    teacher = flux.load_tiny_flow(flux.ASSETS)
    pipeline = flux.build(teacher, ["a red heart"])
    own = dict(pipeline.transformer.named_parameters())
    known = dict(teacher.transformer.named_parameters())
    same = [name for name, value in own.items() if name in known and torch.equal(value, known[name])]
    assert len(same) > 150
    # Patches of Flux are those of SD3's convolution, and its output is SD3's in another order.
    latents = torch.randn(2, 4, 16, 16)
    packed = pipeline._pack_latents(latents, 2, 4, 16, 16)
    embedded = teacher.transformer.pos_embed.proj(latents).flatten(2).transpose(1, 2)
    assert torch.allclose(pipeline.transformer.x_embedder(packed), embedded, atol=1e-5)
    text = pipeline.encode_prompt(["a red heart"], None, max_sequence_length=flux.TOKENS)[0]
    assert text.shape == (1, flux.TOKENS, flux.WIDTH)


@pytest.mark.slow
def test_an_example_is_made_by_the_command(make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in {"RUNS": "runs", "IMAGES": "images"}.items():
        monkeypatch.setattr(sys.modules["examples"], name, tmp_path / place)
    (tmp_path / "images").mkdir()
    example = make.BY_NAME["subject"]
    example.prepare()
    folder = example.data
    row = make.run(
        example,
        [
            *("--instance_data_dir", str(folder / "train"), "--validation_data_dir", str(folder / "held_out")),
            *("--output_dir", str(example.output), "--max_train_steps", "2", "--num_class_images", "8"),
            *("--num_inference_steps", "2", "--lr_warmup_steps", "0"),
        ],
    )
    assert row["steps"] == 2
    assert row["before"] > 0
    make.pictures.draw(example)
    with Image.open(example.image) as image:
        assert image.height > 300
