"""The classes of a DiT come back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import DiTPipeline

from autoprog_diffusion.tasks.class_conditional import set_classes
from autoprog_diffusion.tasks.dit_labels import LabelError, label_texts

from .tiny_transformers import IMAGENET, build_dit


CLASSES = {
    "plain": (("lily", "rose"), {"lily": 0, "rose": 1}),
    "synonyms": (("tench, Tinca tinca", "rose"), {"tench": 0, "Tinca tinca": 0, "rose": 1}),
    "shared": (("maillot", "maillot, tank suit"), {"maillot": 0, "tank suit": 1}),
    "shared, the other first": (("maillot, tank suit", "maillot"), {"maillot": 1, "tank suit": 0}),
    "numbers": (("0", "1", "10"), {"0": 0, "1": 1, "10": 2}),
}


def test_classes_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in CLASSES:
        tmp_path = tmp_path_factory.mktemp("case")
        names, wanted = CLASSES[name]
        pipeline = build_dit()
        rows = set_classes(pipeline, names)
        pipeline.save_pretrained(tmp_path)
        saved: Any = DiTPipeline.from_pretrained(tmp_path)
        assert saved.labels == wanted
        assert rows == {name: row for row, name in enumerate(names)}
        assert saved.transformer.config.num_embeds_ada_norm == pipeline.transformer.config.num_embeds_ada_norm


def test_kept_classes_come_back(tmp_path: Path) -> None:
    pipeline = build_dit(id2label=IMAGENET)
    set_classes(pipeline, ["rose", "goldfish"], keep=True)
    pipeline.save_pretrained(tmp_path)
    saved: Any = DiTPipeline.from_pretrained(tmp_path)
    assert saved.labels == build_dit(id2label=IMAGENET).labels


def test_a_class_without_a_name_of_its_own_is_refused() -> None:
    with pytest.raises(LabelError, match=r"the class 'a, b' has no name of its own"):
        label_texts({"a": 0, "b": 1, "a, b": 2})
