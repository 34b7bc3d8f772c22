"""A script is patched in the right places, and every other byte of it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import unified_diff

from .loops import SCRIPT, added, changed, line_of, patch_text


LINES = [
    "from autoprog_diffusion import GrowthConfig, GrowthScheduler",
    "growth = GrowthScheduler(unet, GrowthConfig.for_model(unet), accelerator)",
    "growth.parameters(),",
    "growth.prepare(unet, num_training_steps=args.max_train_steps)",
    "ema_unet.step(growth.ema_parameters())",
    "growth.step()",
    "growth.fold(unet)",
]
LORA = ("        unet.parameters(),\n        lr=1e-2,", "        lora_layers,\n        lr=1e-2,")


def test_the_lines_stand_below_the_right_ones(tmp_path: Path) -> None:
    text = patch_text(tmp_path, SCRIPT)
    assert added(SCRIPT, text) == LINES
    lines = [line.strip() for line in text.splitlines()]
    above = {line: lines[lines.index(line) - 1] for line in LINES}
    assert above[LINES[0]].startswith("from accelerate.utils")
    assert above[LINES[1]] == "# Optimizer creation"
    assert above[LINES[3]].startswith("args.max_train_steps =")
    assert above[LINES[5]] == "global_step += 1"
    assert above[LINES[6]].startswith("ema_unet.copy_to(")


def test_every_added_line_has_a_comment(tmp_path: Path) -> None:
    text = patch_text(tmp_path, SCRIPT, comments=True)
    lines = added(SCRIPT, text)
    assert [line.partition("  # ")[0] for line in lines] == LINES
    assert all(line.partition("  # ")[2] for line in lines)


def test_a_diff_turns_the_script_into_the_patched_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = patch_text(tmp_path, SCRIPT)
    monkeypatch.chdir(tmp_path)
    diff = unified_diff(read_source(tmp_path / "train.py"), text.encode())
    assert diff.startswith("--- a/train.py\n+++ b/train.py\n")
    removed = [line[1:] for line in diff.splitlines() if line.startswith("-")][1:]
    assert removed == ["        unet.parameters(),", "            ema_unet.step(unet.parameters())"]


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        (SCRIPT.replace("    ", "\t"), "\tgrowth = GrowthScheduler"),
        (SCRIPT.replace("\n", "\r\n"), "growth.step()\r\n"),
        (SCRIPT.rstrip("\n"), "accelerator.end_training()"),
        ("# coding: latin-1\n" + SCRIPT.replace("small loop", "caf\xe9"), "caf\xe9"),
        (SCRIPT.replace("import random\n", "import random; import sys  # \\x0c\n\x0c\n"), "import sys  #"),
        (SCRIPT.replace("    lr_scheduler = get", "\n\n\n    lr_scheduler  =  get"), "lr_scheduler  =  get"),
    ],
    ids=["tabs", "crlf", "no last newline", "latin-1", "form feed", "spaces"],
)
def test_every_other_byte_stays(script: str, kept: str, tmp_path: Path) -> None:
    text = patch_text(tmp_path, script.encode("latin-1"))
    assert kept in text
    new = [line for line in text.splitlines(keepends=True) if "growth" not in line and "Growth" not in line]
    old = [line for line in script.splitlines(keepends=True) if line in new]
    assert new == old
    assert len(script.splitlines()) - len(old) == 2  # the two that are changed
    compile(text.encode("latin-1"), "train.py", "exec")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("        unet.parameters(),\n", "        params=[{'params': unet.parameters()}],\n")],
         "params=[{'params': growth.parameters()}],"),
        ([("    optimizer = torch", "    lora_layers = list(filter(lambda p: p.requires_grad, unet.parameters()))\n"
           "    optimizer = torch"), LORA],
         "lora_layers = list(filter(lambda p: p.requires_grad, growth.parameters()))"),
        ([("    optimizer = torch", "    lora_layers = []\n    for p in unet.parameters():\n"
           "        lora_layers.append(p)\n    optimizer = torch"), LORA],
         "for p in growth.parameters():"),
        ([("unet, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)",
           "wrapped, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)")],
         "growth.prepare(wrapped, num_training_steps=args.max_train_steps)"),
        ([("    unet, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)",
           "    unet = accelerator.prepare(unet)\n    optimizer = accelerator.prepare(optimizer)")],
         "growth.prepare(unet, num_training_steps=args.max_train_steps)"),
        ([("            global_step += 1\n            if global_step % 2",
           "            if global_step % 2"),
          ("        if global_step >= args",
           "        global_step += accelerator.sync_gradients\n        if global_step >= args")],
         "growth.step()"),
    ],
    ids=["group", "lora", "appended", "another name", "apart", "no counter"],
)  # fmt: skip
def test_other_ways_to_write_it(pairs: list[tuple[str, str]], expected: str, tmp_path: Path) -> None:
    script = changed(*pairs)
    text = patch_text(tmp_path, script)
    assert expected in added(script, text)
    compile(text, "train.py", "exec")


def test_the_step_comes_before_a_state_that_is_saved_before_the_counter(tmp_path: Path) -> None:
    script = changed(
        ("            global_step += 1\n", ""),
        ('"checkpoint-{global_step}"))\n', '"checkpoint-{global_step}"))\n            global_step += 1\n'),
    )
    text = patch_text(tmp_path, script)
    assert line_of(text, "ema_unet.step(") + 1 == line_of(text, "growth.step()") < line_of(text, "save_state(")


def test_a_model_that_is_saved_in_the_loop_is_folded_there(tmp_path: Path) -> None:
    save = "            unet_ = accelerator.unwrap_model(unet)\n            unet_.save_pretrained(args.output_dir)\n"
    script = changed(("        if global_step >= args", save + "        if global_step >= args"))
    text = patch_text(tmp_path, script)
    assert (
        text.splitlines()[line_of(text, "with growth.folded(unet):")].strip()
        == "unet_.save_pretrained(args.output_dir)"
    )
    assert "growth.fold(unet)" in text
    end = script.index("    accelerator.wait_for_everyone()")
    text = patch_text(tmp_path, script[:end])
    assert "growth.folded(unet)" in text
    assert "growth.fold(unet)" not in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        unet.parameters(),\n", "        [p for name, p in unet.named_parameters()],\n"),
        ("            global_step += 1\n", "            update_ema(teacher.parameters(), unet.parameters())\n"
         "            global_step += 1\n"),
        ("            global_step += 1\n", "            teacher.load_state_dict(unet.state_dict())\n"
         "            global_step += 1\n"),
    ],
    ids=["named parameters", "by hand", "state"],
)  # fmt: skip
def test_a_second_model_with_the_weights_turns_the_stage_embedding_off(old: str, new: str, tmp_path: Path) -> None:
    script = changed((old, new))
    assert "GrowthConfig.for_model(unet, stage_embedding=False)" in patch_text(tmp_path, script)
    assert "GrowthConfig(stage_embedding=False)" in patch_text(tmp_path, script, schedule="even")


def test_the_schedule_can_be_even(tmp_path: Path) -> None:
    text = patch_text(tmp_path, SCRIPT, schedule="even")
    assert "growth = GrowthScheduler(unet, GrowthConfig(), accelerator)" in text


def test_a_loop_outside_of_functions_and_one_in_a_nested_function(tmp_path: Path) -> None:
    head, body = SCRIPT.split("def main(args):\n")
    flat = head + "\n".join(line.removeprefix("    ") for line in body.splitlines()) + "\n"
    assert added(flat, patch_text(tmp_path, flat)) == LINES
    lines = "\n".join("    " + line if line else line for line in body.splitlines())
    nested = head + "def outer():\n    def main(args):\n" + lines + "\n    return main\n"
    assert added(nested, patch_text(tmp_path, nested)) == LINES


def test_the_model_and_the_steps_can_be_said(tmp_path: Path) -> None:
    script = changed(
        ("    unet = UNet2DModel(", "    unet = build("),
        ("        if global_step >= args.max_train_steps:\n            break\n", ""),
    )
    script = script.replace("unet", "net").replace("args.max_train_steps", "args.count")
    text = patch_text(tmp_path, script, model="net", steps="args.count + 0")
    assert "growth.prepare(net, num_training_steps=args.count + 0)" in text


def test_what_was_found_is_told_with_lines(tmp_path: Path) -> None:
    patch_text(tmp_path, SCRIPT)
    found = analyse(read_source(tmp_path / "train.py")).to_dict()
    assert (found["model"], found["class"], found["optimizer"]) == ("unet", "UNet2DModel", "optimizer")
    lines = found["lines"]
    assert lines["backward"] == line_of(SCRIPT, "accelerator.backward(")
    assert lines["optimizer.step"] == line_of(SCRIPT, "optimizer.step()")
    assert lines["averages"] == [line_of(SCRIPT, "ema_unet.step(")]
