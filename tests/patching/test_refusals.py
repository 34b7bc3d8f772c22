"""What is not understood is refused, with the line and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.patching.errors import PatchError
from autoprog_diffusion.patching.source import read_source

from .loops import SCRIPT, changed, line_of, patch_text


STEP = "            optimizer.step()\n"
BACKWARD = "            accelerator.backward(loss)\n"
BUILT = "    lr_scheduler = get_scheduler("
CLIPPED = """\
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
"""
COUNT = "            global_step += 1\n"
GIVEN = "        unet.parameters(),\n"
PREPARED = "    unet, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)"
SYNCED = """\
        if accelerator.sync_gradients:
            ema_unet.step(unet.parameters())
            global_step += 1
            if global_step % 2 == 0:
                accelerator.save_state(os.path.join(args.output_dir, f"checkpoint-{global_step}"))
"""
# What is changed -> text in the line that is named, and in the message.
REFUSED = {
    "no accelerator": (
        "Accelerator(cpu=True, gradient_accumulation_steps=2)",
        "build()",
        "accelerator.backward(",
        "no accelerate",
    ),
    "two accelerators": ("    set_seed(0)\n", "    other = Accelerator()\n", "other =", "a second Accelerator"),
    "an attribute": ("    accelerator = Acc", "    args.a = accelerator = Acc", "args.a", "no plain variable"),
    "reassigned": ("    set_seed(0)\n", "    accelerator = build()\n", "build()", "assigned again"),
    "own backward": (BACKWARD, "            loss.backward()\n", "loss.backward(", "no accelerator.backward"),
    "two backwards": (
        BACKWARD,
        BACKWARD + "            accelerator.backward(loss + 1)\n",
        "loss + 1",
        "a second backward",
    ),
    "two steps": (STEP, STEP + "            optimizer.step()  # again\n", "# again", "is called twice"),
    "a closure": (STEP, "            optimizer.step(closure)\n", "step(closure)", "closure"),
    "two optimizers": (
        STEP,
        STEP + "            other.step()\n            other.zero_grad()\n",
        "other.step",
        "a second optimizer",
    ),
    "an early step": (BACKWARD + CLIPPED + STEP, STEP + BACKWARD, "optimizer.step()", "comes before"),
    "a wrapped optimizer": (
        BUILT,
        "    optimizer = Lookahead(optimizer)\n" + BUILT,
        "Lookahead",
        "wrapped by another",
    ),
    "deepspeed": ("torch.optim.AdamW(", "DummyOptim(", "DummyOptim", "DeepSpeed"),
    "an unknown class": ("    unet = UNet2DModel(", "    unet = AutoencoderKL(", "optimizer = torch", "no denoiser"),
    "peft": ("    # Opt", "    unet = get_peft_model(unet, config)\n    # Opt", "get_peft", "add_adapter"),
    "two denoisers": (
        GIVEN,
        "        [*unet.parameters(), *transformer.parameters()],\n",
        "optimizer = torch",
        "several denoisers",
    ),
    "a part": (GIVEN, "        [*unet.parameters(), *unet.head.parameters()],\n", "unet.head", "a part of unet"),
    "no parameters": (GIVEN, "        build(unet),\n", "optimizer = torch", "no model.parameters()"),
    "not prepared": (PREPARED, "    optimizer = accelerator.prepare(optimizer)", "accelerator.prepare", "gets unet"),
    "prepared by star": (
        "= accelerator.prepare(unet, optimizer, lr_scheduler)",
        "= accelerator.prepare(unet, *rest)",
        "*rest",
        "not clear what holds",
    ),
    "no sync_gradients": (
        "        if accelerator.sync_gradients:\n            ema",
        "        if True:\n            ema",
        "optimizer.step()",
        "sync_gradients",
    ),
    "two counters": (COUNT, COUNT + "            seen += 1\n", "seen += 1", "second counter"),
    "counted on one process": (
        SYNCED,
        "        if accelerator.is_main_process:\n"
        "            if accelerator.sync_gradients:\n"
        "                global_step += 1\n",
        "  if accelerator.sync_gradients:",
        "stands inside",
    ),
    "saved early": (
        "            optimizer.zero_grad()\n",
        "            optimizer.zero_grad()\n        accelerator.save_state(early)\n",
        "save_state(early)",
        "saved before `if accelerator.sync_gradients:`",
    ),
    "saved first": (
        "            ema_unet.step(unet",
        "            accelerator.save_state(path)\n            ema_unet.step(unet",
        "save_state(path)",
        "saved before",
    ),
    "adapters switched": (
        BACKWARD,
        "            unet.disable_adapters()\n" + BACKWARD,
        "disable_adapters",
        "disable_adapters()",
    ),
    "unfrozen later": (BUILT, "    unet.requires_grad_(True)\n" + BUILT, "requires_grad_", "require gradient"),
    "unfrozen by a loop": (
        BUILT,
        "    for p in unet.parameters():\n        p.requires_grad = True\n" + BUILT,
        "p.requires_grad",
        "require gradient",
    ),
    "unfrozen modules": (
        BUILT,
        "    for name, module in unet.named_modules():\n        module.requires_grad_(True)\n" + BUILT,
        "module.requires_grad_",
        "require gradient",
    ),
    "another model": (BUILT, "    unet = ORTModule(unet)\n" + BUILT, "ORTModule", "something else"),
    "a late average": (
        BUILT,
        "    ema_unet = EMAModel(unet.parameters())\n" + BUILT,
        "ema_unet = EMAModel(unet.parameters())\n",
        "average",
    ),
    "an average of others": (
        "ema_unet.step(unet.parameters())",
        "ema_unet.step(chosen)",
        "step(chosen)",
        "built from something else",
    ),
    "steps that change": (
        COUNT,
        COUNT + "            args.max_train_steps = 9\n",
        "steps = 9",
        "changes in the training loop",
    ),
    "loaded early": (
        "    args.max_train_steps = args",
        "    accelerator.load_state(path)\n    args.max_train_steps = args",
        "load_state(path)",
        "loaded before",
    ),
    "one line": (
        SYNCED,
        "        if accelerator.sync_gradients: global_step += 1\n",
        "sync_gradients: global",
        "same line",
    ),
    "saved before the copy": (
        "        if args.use_ema:\n            ema_unet.copy",
        "        unet.save_pretrained(raw)\n        if args.use_ema:\n            ema_unet.copy",
        "(raw)",
        "before ema_unet.copy_to",
    ),
    "patched": ("import os\n", "import os\nimport autoprog_diffusion\n", "import autoprog", "patched already"),
    "a taken name": (
        "    global_step = 0\n",
        "    global_step = 0\n    growth = 1.1\n",
        "growth = 1.1",
        "the name growth",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_line_and_the_reason_are_named(kind: str, tmp_path: Path) -> None:
    old, new, marker, reason = REFUSED[kind]
    script = changed((old, new))
    with pytest.raises(PatchError) as refused:
        patch_text(tmp_path, script)
    assert reason in refused.value.reason
    if marker:
        lines = script.splitlines()
        assert marker.strip() in lines[refused.value.line - 1], (refused.value.line, refused.value.reason)
        assert str(refused.value).startswith(f"{tmp_path / 'train.py'}:{refused.value.line}: ")
    assert refused.value.line is not None


def test_a_patched_script_is_not_patched_again(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="patched already") as refused:
        patch_text(tmp_path, patch_text(tmp_path, SCRIPT))
    assert refused.value.line == line_of(SCRIPT, "from diffusers import")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (SCRIPT.encode() + b"def broken(:\n", "it is no Python"),
        (SCRIPT.encode().replace(b"small", b"caf\xe9"), "encoding"),
        (b"# coding: nonsense\n" + SCRIPT.encode(), "encoding"),
        (b"\xef\xbb\xbf" + SCRIPT.encode(), "byte order mark"),
        (SCRIPT.encode("utf-16"), "it is no Python|encoding"),
        (b"", "no accelerate"),
        (b"\x00\x01", "it is no Python|no accelerate|encoding"),
        (b"if 1:\n\tx = 1\n        y = 2\n", "it is no Python"),
    ],
    ids=["syntax", "not utf-8", "unknown encoding", "bom", "utf-16", "empty", "binary", "mixed indentation"],
)
def test_what_is_no_script_is_told(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=reason):
        patch_text(tmp_path, data)


def test_a_folder_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="this is a folder"):
        read_source(tmp_path)
    with pytest.raises(PatchError, match="cannot be read"):
        read_source(tmp_path / "none.py")
