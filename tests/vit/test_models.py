"""Models of both libraries: built, saved, loaded, called in one way; stochastic depth as timm's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth import ConfigError, UnitError
from autoprog_diffusion.vit.drop_path import DropPath, set_drop_path
from autoprog_diffusion.vit.models import (
    ModelError,
    build_model,
    is_timm,
    is_transformers,
    load_model,
    logits,
    save_model,
    size_multiple,
)


HF: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
TIMM: dict[str, Any] = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8}
NEEDS_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm, the extra vit")
NAMES = [
    "transformers:vit",
    "transformers:deit",
    *(
        pytest.param(f"timm:{name}", marks=NEEDS_TIMM)
        for name in (
            "deit_tiny_patch16_224",
            "deit3_small_patch16_224",
            "deit_tiny_distilled_patch16_224",
            "vit_tiny_patch16_224",
            "eva02_tiny_patch14_224",
        )
    ),
]
names = pytest.mark.parametrize("name", NAMES)
LABELS = ["cat", "dog", "emu", "fox", "gnu"]


def build(name: str, classes: int = 5, **options: Any) -> nn.Module:
    sizes = TIMM if name.startswith("timm:") else HF
    return build_model(name, num_classes=classes, image_size=32, **{**sizes, **options})


@torch.no_grad()
def evaluate(model: nn.Module, size: int = 32) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return logits(model.eval(), images)


@names
def test_a_saved_model_is_the_same_model_and_takes_other_sizes(name: str, tmp_path: Path) -> None:
    model = build(name)
    save_model(model, tmp_path, labels=LABELS)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(evaluate(loaded), evaluate(model))
    assert LABELS == list(json.loads((tmp_path / "config.json").read_text()).get("label_names") or LABELS)
    _other_sizes_and_wrapped_models_give_logits(model)


def test_transformers_loads_what_was_saved(tmp_path: Path) -> None:
    import transformers

    model = build("transformers:vit")
    save_model(model, tmp_path, labels=LABELS)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.label2id["fox"] == 3
    assert theirs.config.intermediate_size == 64  # four times the width, not the default of 3072
    assert torch.equal(evaluate(theirs), evaluate(model))


@NEEDS_TIMM
def test_timm_loads_what_was_saved(tmp_path: Path) -> None:
    import timm

    model = build("timm:deit_tiny_patch16_224")
    save_model(model, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(evaluate(theirs), evaluate(model))
    plain = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32, **TIMM)
    timm.models.load_checkpoint(plain, str(tmp_path / "model.safetensors"))
    assert torch.equal(evaluate(plain), evaluate(model))


def _other_sizes_and_wrapped_models_give_logits(model: nn.Module) -> None:
    assert evaluate(model, 48).shape == (2, 5)
    wrapped = nn.Module()
    wrapped.module = model
    wrapped.forward = model.forward  # type: ignore[method-assign]
    assert torch.equal(evaluate(wrapped.eval()), evaluate(model))


@names
def test_a_folder_gets_a_new_head_for_other_classes(name: str, tmp_path: Path) -> None:
    model = build(name)
    save_model(model, tmp_path)
    same = build_model(str(tmp_path), num_classes=5, image_size=32)
    assert torch.equal(evaluate(same), evaluate(model))
    other = build_model(str(tmp_path), num_classes=3, image_size=32)
    assert evaluate(other).shape == (2, 3)
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith(("head", "classifier"))}
    theirs = other.state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in kept.items())
    save_model(other, tmp_path / "again")
    assert torch.equal(evaluate(load_model(tmp_path / "again")), evaluate(other))
    with pytest.raises(ModelError, match="cannot change the saved model"):
        build_model(str(tmp_path), num_classes=3, image_size=32, depth=2)


@NEEDS_TIMM
def test_volo_is_built_in_its_own_sizes() -> None:
    with torch.device("meta"):
        model = build_model("timm:volo_d1_224", num_classes=5, image_size=64)
    assert size_multiple(model) == 16
    with pytest.raises(ModelError, match=r"timm:volo_d1_224 cannot be built with layers=.*change that size"):
        build_model("timm:volo_d1_224", num_classes=5, image_size=64, layers=(1, 1, 1, 1))


BAD_NAMES = [
    ("transformers:vit", {"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=16"),
    ("transformers:vit", {"patch_size": 5}, "image_size=32 is not a multiple of the patch, 5: use 30 or 35"),
    ("transformers:vit", {"patch_size": 64}, "image_size=32 is not a multiple of the patch, 64: use 64 or 128"),
    ("transformers:vit", {"depth": 3}, r"ViTConfig has no \['depth'\]: its sizes are hidden_size"),
    ("transformers:vti", {}, "model='transformers:vti' is not known: use transformers:vit"),
    ("vti", {}, "model='vti' is neither a folder nor a known name: use timm:<architecture>, transformers:deit"),
    ("transformers:vit", {"drop_path": 1.0}, r"drop_path=1.0 is not in \[0, 1\)"),
]


def test_bad_names_and_sizes_say_what_is_allowed() -> None:
    for name, options, message in BAD_NAMES:
        with pytest.raises((ModelError, ConfigError), match=message):
            build(name, **options)


@NEEDS_TIMM
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:deit_tny_patch16_224", {}, r"did you mean one of \['deit_tiny_patch16_224'"),
        ("timm:resnet18", {}, "is not a vision transformer of timm"),
        (
            "timm:deit_tiny_patch16_224",
            {"num_heads": 3},
            "cannot be built with embed_dim=16, .*divisible by num_heads",
        ),
        ("timm:deit_tiny_patch16_224", {"patch_size": 5}, "image_size=32 is not a multiple of the patch, 5"),
    ],
)
def test_bad_names_and_sizes_of_timm_say_what_is_allowed(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, **options)


def test_timm_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "autoprog-diffusion\[vit\]"'):
        build("timm:deit_tiny_patch16_224")


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json and no model.safetensors: give the folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetForImageClassification"]}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="holds a ResNetForImageClassification: known are timm's models"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="Linear is a model of neither timm nor transformers"):
        save_model(nn.Linear(2, 2), tmp_path)


def test_libraries_are_told_apart() -> None:
    assert is_transformers(build("transformers:vit"))
    assert not is_timm(build("transformers:vit"))
    assert not is_transformers(nn.Linear(2, 2))


def rates(model: nn.Module) -> list[float]:
    return [module.rate for module in model.modules() if isinstance(module, DropPath)]


@names
def test_drop_path_rises_linearly_and_adds_no_parameter(name: str) -> None:
    model = build(name)
    before, keys = evaluate(model), list(model.state_dict())
    set_drop_path(model, 0.4)
    places = 1 if name.startswith("transformers") else 2  # a block's branches share one module, or have one each
    expected = [rate for rate in (0.0, 0.2, 0.4) for _ in range(places)]
    # A branch without anything to drop keeps what it had.
    assert rates(model) in (expected, expected[places:])
    assert list(model.state_dict()) == keys
    assert torch.equal(evaluate(model), before)  # nothing is dropped in evaluation
    drawn = [logits(model.train(), torch.ones(8, 3, 32, 32)) for _ in range(2)]
    assert not torch.equal(*drawn)
    set_drop_path(model, 0.0)
    assert not any(rates(model))
    assert torch.equal(*[logits(model.train(), torch.ones(8, 3, 32, 32)) for _ in range(2)])


@NEEDS_TIMM
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "volo_d1_224", "eva02_tiny_patch14_224"])
def test_rates_are_those_timm_builds_with(name: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(name, drop_path_rate=0.3)
        ours = timm.create_model(name)
    set_drop_path(ours, 0.3)
    wanted = {key: m.drop_prob for key, m in theirs.named_modules() if type(m).__name__ == "DropPath"}
    found = {key: m.rate for key, m in ours.named_modules() if isinstance(m, DropPath) and m.rate}
    assert len(found) > 10
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    layer = DropPath(0.25).train()
    out = layer(torch.ones(4000, 3, 2))
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))
    assert layer.eval()(out) is out


def test_dropout_of_transformers_is_kept_beside_drop_path() -> None:
    model = build("transformers:vit", hidden_dropout_prob=0.1, drop_path=0.2)
    layers = model.vit.layers
    assert [layer.dropout[0].p for layer in layers] == [0.1] * 3
    assert rates(model) == pytest.approx([0.0, 0.1, 0.2])
    set_drop_path(model, 0.4)
    assert rates(model) == pytest.approx([0.0, 0.2, 0.4])


def test_a_model_without_branches_takes_no_rate() -> None:
    set_drop_path(nn.Linear(2, 2), 0.0)
    with pytest.raises(UnitError, match="no block of Linear has branches to drop"):
        set_drop_path(nn.Linear(2, 2), 0.1)
