"""An average of the weights is written where a script has none, and is what such a script then saves."""

from __future__ import annotations

import runpy
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from autoprog_diffusion.patching.errors import PatchError

from .loops import SCRIPT, added, changed, line_of, patch_text


# The script without an average of its own.
PLAIN = changed(
    ("    ema_unet = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)\n", ""),
    ("            ema_unet.step(unet.parameters())\n", ""),
    ("        if args.use_ema:\n            ema_unet.copy_to(unet.parameters())\n", ""),
)
LINES = [
    "from autoprog_diffusion import GrowthConfig, GrowthScheduler, PowerAverage",
    "growth = GrowthScheduler(unet, GrowthConfig.for_model(unet), accelerator)",
    "growth.parameters(),",
    "growth.prepare(unet, num_training_steps=args.max_train_steps)",
    "average = PowerAverage(unet, growth=growth, accelerator=accelerator)",
    "average.step()",
    "growth.step()",
    "average.copy_to()",
    "growth.fold(unet)",
]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def run(text: str, output: Path, *, resume: str = "") -> dict[str, torch.Tensor]:
    """The weights that a script saves."""
    output.mkdir(parents=True, exist_ok=True)
    script = output / "train.py"
    script.write_text(text, encoding="utf-8")
    AcceleratorState._reset_state(reset_partial_state=True)
    args = Namespace(max_train_steps=4, resume=resume, output_dir=str(output), use_ema=False)
    runpy.run_path(str(script))["main"](args)
    return load_file(output / WEIGHTS)


def test_it_is_written_where_the_script_has_none(tmp_path: Path) -> None:
    text = patch_text(tmp_path, PLAIN)
    assert added(PLAIN, text) == LINES
    assert line_of(text, "accelerator.wait_for_everyone()") + 1 == line_of(text, "average.copy_to()")
    without = patch_text(tmp_path, PLAIN, average="off")
    assert "verage" not in without
    assert added(PLAIN, without) == [line.removesuffix(", PowerAverage") for line in LINES if "average" not in line]


TAKEN = changed(("    global_step = 0\n", "    average = global_step = 0\n"), script=PLAIN)
COUNT = "            global_step += 1\n"
TEACHER = changed((COUNT, "            update(teacher, unet.parameters())\n" + COUNT), script=PLAIN)
CHECKPOINTS = changed(("        unet.save_pretrained(args.output_dir)\n", ""), script=PLAIN)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (SCRIPT, "the script has an average of its own, ema_unet"),
        (TAKEN, "the name average is used"),
        (TEACHER, "gives the weights of unet to another model"),
        (CHECKPOINTS, "unet is saved in checkpoints alone"),
    ],
    ids=["own", "name", "teacher", "checkpoints"],
)
def test_it_is_left_out_where_something_stands_against_it(script: str, reason: str, tmp_path: Path) -> None:
    assert "PowerAverage" not in patch_text(tmp_path, script)
    with pytest.raises(PatchError, match=reason):
        patch_text(tmp_path, script, average="on")


def test_a_model_that_is_saved_in_the_loop_is_the_average_there(tmp_path: Path) -> None:
    save = "            accelerator.unwrap_model(unet).save_pretrained(args.output_dir)\n"
    script = changed(("        if global_step >= args", save + "        if global_step >= args"), script=PLAIN)
    text = patch_text(tmp_path, script)
    line = text.splitlines()[line_of(text, save.strip()) - 2]
    assert line.strip() == "with average.in_place(), growth.folded(unet):"


def test_the_average_is_what_is_saved_and_a_resumed_run_has_it(tmp_path: Path) -> None:
    text = patch_text(tmp_path, PLAIN)
    whole = run(text, tmp_path / "whole")
    raw = run(patch_text(tmp_path, PLAIN, average="off"), tmp_path / "raw")
    assert not all(torch.equal(whole[name], raw[name]) for name in raw)
    resumed = run(text, tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
