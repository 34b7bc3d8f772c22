"""What a run of vit/ says of its data: class folders as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from autoprog_diffusion.data.listing import VIDEO
from autoprog_diffusion.training.run import run
from autoprog_diffusion.vit.training.pretraining import Pretraining

from .pretraining import tiny_arguments


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(path, "JPEG" if path.suffix == ".jfif" else None)
    return folder


@pytest.mark.parametrize("memory", ["1024", "0"])
def test_reader_skips_what_is_no_class_and_reads_every_ending(
    tmp_path: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"{row}.{ending}" for row, ending in enumerate(["gif", "jfif", "avif", "png"] * 3)]
    names = [f"{kind}/{file}" for kind in "ab" for file in files]
    folder = write(tmp_path / "data", *names, ".ipynb_checkpoints/0.png", "__MACOSX/a/._0.png")
    (folder / "a" / "clip.mp4").write_text("x")
    (folder / "b" / "3.png").write_bytes(b"damaged")
    flags = ("--train_data", str(folder), "--corrupt", "skip", "--memory", memory, "--workers", "0")
    args = tiny_arguments(tmp_path, *flags, "--max_train_steps", "4", "--val_fraction", "0.2")
    run(Pretraining(), args)
    assert "1  in hidden folders: .ipynb_checkpoints/0.png" in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b"}
    train, val = json.loads((tmp_path / "out" / "run.json").read_text())["data_report"]["sources"]
    assert train["left_out"].items() >= {
        VIDEO: 1, "in hidden folders": 1, "in folders of the operating system": 1,
        "held out for validation": 4,
    }.items()  # fmt: skip
    assert train["used"] + val["used"] == 23
    assert (train["left_out"].get("damaged", 0), val["left_out"].get("damaged", 0)) in ((1, 0), (0, 1))
