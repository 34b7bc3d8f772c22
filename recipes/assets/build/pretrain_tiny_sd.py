"""Pretrains the tiny text-to-image pipeline in ``recipes/assets/tiny_sd`` from scratch, on two CPU cores.

The result is a plain ``StableDiffusionPipeline`` for 64x64 images: a VAE (f=4) and, on its cached latents, a UNet with
a text encoder, both trained on Twemoji and its captions. OpenMoji is never trained on, so that it remains a new style
to fine-tune to; its images only measure the VAE.

The commands (the folder of ``--data_dir`` holds ``emoji_styles_64.parquet``: other emoji styles, for a VAE that
generalises; without it the VAE sees Twemoji alone)::

    pip install -e .
    python recipes/assets/build/pretrain_tiny_sd.py --phase vae --vae_minutes 19 --data_dir ../shared/data
    python recipes/assets/build/pretrain_tiny_sd.py --phase unet --unet_lr 3.5e-3 --unet_minutes 78
    python recipes/assets/build/pretrain_tiny_sd.py --phase export

The bundled weights took this long on two cores of an AMD EPYC (AVX-512 with bfloat16) that other jobs kept half
busy, and in sittings with different rates; ``recipes/assets/tiny_sd/README.md`` lists them. Idle, the same cores take
about 5 steps a second of the VAE and 1.8 of the UNet. Set ``OMP_WAIT_POLICY=PASSIVE`` when they are not idle: one busy
core otherwise slows both down several times.

Both phases save their state every few minutes and go on from it when started again, also with more minutes than
before. They follow the clock by default; ``--vae_steps`` and ``--unet_steps`` fix the number of steps instead.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from emoji_images import load_images
from pictures import retrieval, save_sheet
from sd_models import Denoiser, averaged_pipeline, build_tokenizer
from sd_unet import train_unet
from sd_vae import train_vae
from sessions import load_state


def export(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Writes the averaged weights as fp16, and measures what was written."""
    state = load_state(work / "unet_state.pt")
    if not state:
        raise ValueError(f"--output_dir must hold the result of --phase unet, and {str(work)!r} does not")
    tokenizer = build_tokenizer(load_images("twemoji")[1])
    model = Denoiser(tokenizer)
    model.load_state_dict(state["model"])
    ema = EMAModel(model.parameters())
    ema.load_state_dict(state["ema"])
    target, temporary = Path(args.export_dir), work / "export"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline = averaged_pipeline(work, model, ema, tokenizer)
    for module in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        module.half()
    pipeline.save_pretrained(temporary)
    tidy(temporary)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(temporary, target, dirs_exist_ok=True)  # beside the model card that is there
    pipeline = StableDiffusionPipeline.from_pretrained(target)
    save_sheet(pipeline, work)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return {"steps": state["step"], "bytes": size, "retrieval": retrieval(pipeline)}


def tidy(folder: Path) -> None:
    """Makes all parts load as float32, drops the path of the work folder, and lets everyone read the files."""
    # diffusers loads its fp16 files as float32; transformers goes by its config, and the parts must agree.
    text, vae = folder / "text_encoder" / "config.json", folder / "vae" / "config.json"
    text.write_text(text.read_text().replace('"float16"', '"float32"'))
    config = json.loads(vae.read_text())
    config.pop("_name_or_path", None)
    vae.write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


PHASES = {"vae": train_vae, "unet": train_unet, "export": export}


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--phase", choices=(*PHASES, "all"), default="all")
    parser.add_argument("--output_dir", default="runs/pretrain", help="states, contact_sheet.png, metrics.json")
    parser.add_argument("--export_dir", default="recipes/assets/tiny_sd")
    parser.add_argument("--data_dir", help="folder of emoji_styles_64.parquet: more styles for the VAE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save_minutes", type=float, default=4.0)
    parser.add_argument("--vae_minutes", type=float, default=13.0)
    parser.add_argument("--vae_steps", type=int, help="instead of --vae_minutes")
    parser.add_argument("--vae_batch_size", type=int, default=32)
    parser.add_argument("--vae_lr", type=float, default=2e-3)
    parser.add_argument("--kl_weight", type=float, default=5e-4)
    parser.add_argument("--unet_minutes", type=float, default=52.0)
    parser.add_argument("--unet_steps", type=int, help="instead of --unet_minutes")
    parser.add_argument("--unet_optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--unet_batch_size", type=int, default=64)
    parser.add_argument("--unet_lr", type=float, default=1e-3)
    parser.add_argument("--caption_dropout", type=float, default=0.1)
    parser.add_argument("--ema_decay", type=float, default=0.996)
    return parser.parse_args()


def main() -> None:
    """Runs the chosen phases and collects their numbers in ``metrics.json``."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    work = Path(args.output_dir)
    work.mkdir(parents=True, exist_ok=True)
    metrics_path = work / "metrics.json"
    metrics = json.loads(metrics_path.read_text()) if metrics_path.is_file() else {}
    for phase, run in PHASES.items():
        if args.phase in (phase, "all"):
            metrics[phase] = run(args, work)
            metrics_path.write_text(json.dumps(metrics, indent=2) + "\n")
            print(phase, json.dumps(metrics[phase]))


if __name__ == "__main__":
    main()
