"""New classes for a DiT: which rows are kept, where the unconditional one goes, and that DiTPipeline agrees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from torch import Tensor

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.class_conditional import load_dit, set_classes
from autoprog_diffusion.tasks.dit_labels import LabelError, fit_labels, keep_labels, label_ids, label_tables

from .tiny_transformers import CLASSES, IMAGENET, build_dit, build_sd3, build_transformer, save


LABELS = {"tench": 0, "Tinca tinca": 0, "rose": 1, "goldfish": 2, "Carassius auratus": 2}


def tables(transformer: torch.nn.Module) -> list[Tensor]:
    return [embedder.embedding_table.weight.detach().clone() for embedder in label_tables(transformer)]


def test_known_classes_keep_their_embedding_and_new_ones_start_near_the_unconditional_one() -> None:
    transformer = build_transformer(classes=3)
    before = tables(transformer)
    ids = fit_labels(transformer, CLASSES, LABELS, seed=0)
    assert ids == [0, 1, 2]
    for old, new in zip(before, tables(transformer)):
        assert new.shape == (1001, 32)
        assert torch.equal(new[1000], old[3])
        assert torch.equal(new[1], old[1])  # rose
        for row in (0, 2):
            noise = new[row] - old[3]
            assert noise.std().item() == pytest.approx(0.02, rel=0.5)
            assert not torch.equal(new[row], old[row])
    assert transformer.config.num_embeds_ada_norm == 1000
    assert all(parameter.requires_grad for parameter in transformer.parameters())


def test_blocks_and_seeds_have_noise_of_their_own() -> None:
    start = build_transformer(classes=3).state_dict()

    def fitted(seed: int) -> list[Tensor]:
        transformer = build_transformer(classes=3)
        transformer.load_state_dict(start)
        fit_labels(transformer, CLASSES, {}, seed)
        return [table[:3] - table[1000] for table in tables(transformer)]

    first, same, other = fitted(0), fitted(0), fitted(1)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, same))
    assert not torch.equal(first[0], other[0])


def test_rows_of_no_class_stay_as_they_were() -> None:
    transformer = build_transformer(classes=1000)
    before = tables(transformer)
    fit_labels(transformer, CLASSES, {}, seed=0)
    for old, new in zip(before, tables(transformer)):
        assert torch.equal(new[3:], old[3:])
        assert not torch.equal(new[:3], old[:3])


def test_more_than_a_thousand_classes_leave_out_the_unconditional_row() -> None:
    assert label_ids(1002)[998:] == [998, 999, 1001, 1002]
    transformer = build_transformer(classes=3)
    null = tables(transformer)[0][3]
    ids = fit_labels(transformer, [f"class {index}" for index in range(1002)], {}, seed=0)
    assert 1000 not in ids
    assert torch.equal(tables(transformer)[0][1000], null)
    assert tables(transformer)[0].shape == (1003, 32)
    assert transformer.config.num_embeds_ada_norm == 1002


def test_the_checkpoint_s_own_classes_are_found_by_any_of_their_names() -> None:
    assert keep_labels(["Carassius_auratus", "tench", "tench, Tinca tinca"], LABELS) == [2, 0, 0]
    with pytest.raises(LabelError, match=r"no class \['lily', 'tulip'\]: its 5 names are .*Rename"):
        keep_labels(CLASSES, LABELS)
    with pytest.raises(LabelError, match="its 0 names"):
        keep_labels(CLASSES, {})


def test_only_models_with_classes_are_taken() -> None:
    with pytest.raises(LabelError, match="SD3Transformer2DModel has no class_embedder"):
        label_tables(build_sd3().transformer)


@pytest.mark.parametrize("keep", [False, True])
def test_the_saved_pipeline_is_plain_and_its_guidance_works(tmp_path: Path, keep: bool) -> None:
    pipeline = build_dit(3, id2label=IMAGENET)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(IndexError):  # what Diffusers does by itself with fewer than a thousand classes
        pipeline([0], num_inference_steps=1)
    names = ["goldfish", "rose"] if keep else CLASSES
    rows = set_classes(pipeline, names, keep=keep)
    assert rows == ({"goldfish": 2, "rose": 1} if keep else {"lily": 0, "rose": 1, "tulip": 2})
    pipeline.save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.labels == ({**LABELS, "goldfish": 2, "rose": 1} if keep else {"lily": 0, "rose": 1, "tulip": 2})
    weights = loaded.transformer.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.transformer.state_dict().items())
    draw = [
        one(list(rows.values()), num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
        for one in (pipeline, loaded)
    ]
    assert (draw[0].images == draw[1].images).all()


def test_guidance_uses_the_unconditional_row(tmp_path: Path) -> None:
    pipeline = build_dit(3)
    pipeline.set_progress_bar_config(disable=True)
    set_classes(pipeline, CLASSES)

    def draw(guidance: float) -> bytes:
        generator = torch.Generator().manual_seed(0)
        images = pipeline([1], guidance_scale=guidance, num_inference_steps=1, generator=generator, output_type="np")
        return images.images.tobytes()

    plain, guided = draw(1.0), draw(30.0)
    assert plain != guided
    for embedder in label_tables(pipeline.transformer):
        embedder.embedding_table.weight.data[1000] = embedder.embedding_table.weight.data[1]
    assert draw(30.0) != guided


def test_the_layout_of_facebook_s_checkpoints_is_read(tmp_path: Path) -> None:
    """Their transformer is saved as a `Transformer2DModel`, a class that Diffusers split up since."""
    folder = save(tmp_path / "dit", build_dit, classes=1000, learned_variance=True, id2label=IMAGENET)
    index, config = folder / "model_index.json", folder / "transformer" / "config.json"
    values = json.loads(index.read_text())
    values["transformer"] = ["diffusers", "Transformer2DModel"]
    index.write_text(json.dumps(values))
    config.write_text(config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    pipeline = load_dit(str(folder))
    assert type(pipeline.transformer).__name__ == "DiTTransformer2DModel"
    assert set_classes(pipeline, CLASSES) == {"lily": 0, "rose": 1, "tulip": 2}


def test_another_kind_of_pipeline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folders = (save(tmp_path / "sd3", build_sd3), tmp_path / "nothing", save(tmp_path / "dit", build_dit))
    (folders[2] / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    messages = ("is a StableDiffusion3Pipeline: only a DiTPipeline", "holds no", "cannot be loaded as a DiT pipeline")
    for folder, message in zip(folders, messages):
        with pytest.raises(GrowthError, match=message):
            load_dit(str(folder))
