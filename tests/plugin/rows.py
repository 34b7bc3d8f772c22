"""How every script of Diffusers that can run without a network is run: its tiny pipeline, data and flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import more_pipelines as more
from . import pipelines


@dataclass(frozen=True)
class Row:
    """One script that is run.

    Attributes:
        path: Below `examples/`.
        build: Makes the tiny pipeline it trains.
        flags: What it is run with beside the output folder, accumulation and checkpoints; `{pipeline}` is the folder
            of the tiny pipeline, `{images}`, `{instances}` and `{conditioned}` those of pictures.
        resumes: Whether it has the flags of checkpoints.
    """

    path: str
    build: Callable[[], Any]
    flags: tuple[str, ...]
    resumes: bool = True


STEPS = ("--resolution", "16", "--max_train_steps", "4", "--lr_warmup_steps", "0", "--lr_scheduler", "constant",
         "--seed", "0", "--train_batch_size", "2", "--learning_rate", "1e-2")  # fmt: skip
MODEL = ("--pretrained_model_name_or_path", "{pipeline}")
LATENT = (*MODEL, *STEPS)
IMAGES = (*LATENT, "--train_data_dir", "{images}")
INSTANCES = (*LATENT, "--instance_data_dir", "{instances}", "--instance_prompt", "a picture")
SHORT = (*INSTANCES, "--max_sequence_length", "16")
EDITED = (*LATENT, "--dataset_name", "{conditioned}", "--original_image_column", "input_image")
CONDITIONED = (*LATENT, "--dataset_name", "{conditioned}", "--image_column", "image", "--caption_column", "text",
               "--conditioning_image_column", "conditioning_image")  # fmt: skip
HUBER = "research_projects/scheduled_huber_loss_training"
UNCONDITIONAL = ("--train_data_dir", "{images}", "--resolution", "16", "--train_batch_size", "2",
                 "--learning_rate", "1e-2", "--lr_scheduler", "constant", "--eval_batch_size", "1")  # fmt: skip

ROWS = [
    Row("text_to_image/train_text_to_image.py", pipelines.stable_diffusion, (*IMAGES, "--use_ema")),
    Row("text_to_image/train_text_to_image_lora.py", pipelines.stable_diffusion, IMAGES),
    Row("text_to_image/train_text_to_image_sdxl.py", pipelines.sdxl,
        (*IMAGES, "--caption_column", "text", "--use_ema")),
    Row("text_to_image/train_text_to_image_lora_sdxl.py", pipelines.sdxl, (*IMAGES, "--train_text_encoder")),
    Row("dreambooth/train_dreambooth.py", pipelines.stable_diffusion, INSTANCES),
    Row("dreambooth/train_dreambooth_lora.py", pipelines.stable_diffusion, (*INSTANCES, "--train_text_encoder")),
    Row("dreambooth/train_dreambooth_lora_sdxl.py", pipelines.sdxl, (*INSTANCES, "--train_text_encoder")),
    Row("dreambooth/train_dreambooth_sd3.py", pipelines.sd3, SHORT),
    Row("dreambooth/train_dreambooth_lora_sd3.py", pipelines.sd3, SHORT),
    Row("dreambooth/train_dreambooth_flux.py", pipelines.flux, SHORT),
    Row("dreambooth/train_dreambooth_lora_flux.py", pipelines.flux, SHORT),
    Row("dreambooth/train_dreambooth_lora_flux_kontext.py", pipelines.flux, SHORT),
    Row("dreambooth/train_dreambooth_lora_flux2_klein.py", more.flux2_klein,
        (*SHORT, "--text_encoder_out_layers", "1")),
    Row("dreambooth/train_dreambooth_lora_qwen_image.py", more.qwen_image, SHORT),
    Row("dreambooth/train_dreambooth_lora_z_image.py", more.z_image, SHORT),
    Row("dreambooth/train_dreambooth_lora_sana.py", more.sana, (*SHORT, "--train_batch_size", "1")),
    Row("dreambooth/train_dreambooth_lora_lumina2.py", more.lumina2, SHORT),
    Row("advanced_diffusion_training/train_dreambooth_lora_sd15_advanced.py", pipelines.stable_diffusion, INSTANCES),
    Row("advanced_diffusion_training/train_dreambooth_lora_sdxl_advanced.py", pipelines.sdxl, INSTANCES),
    Row("advanced_diffusion_training/train_dreambooth_lora_flux_advanced.py", pipelines.flux, SHORT),
    Row("controlnet/train_controlnet.py", more.stable_diffusion_eighths, (*CONDITIONED, "--resolution", "64")),
    Row("controlnet/train_controlnet_sdxl.py", more.sdxl_eighths, (*CONDITIONED, "--resolution", "64")),
    Row("controlnet/train_controlnet_sd3.py", more.sd3_deep, (*CONDITIONED, "--num_extra_conditioning_channels", "0")),
    Row("controlnet/train_controlnet_flux.py", pipelines.flux,
        (*CONDITIONED, "--num_double_layers", "2", "--num_single_layers", "1")),
    Row("instruct_pix2pix/train_instruct_pix2pix.py", pipelines.stable_diffusion, (*EDITED, "--use_ema")),
    Row("instruct_pix2pix/train_instruct_pix2pix_sdxl.py", pipelines.sdxl, (*EDITED, "--use_ema")),
    Row("flux-control/train_control_flux.py", pipelines.flux, CONDITIONED),
    Row("flux-control/train_control_lora_flux.py", pipelines.flux, CONDITIONED),
    Row("unconditional_image_generation/train_unconditional.py", pipelines.unconditional,
        (*UNCONDITIONAL, "--model_config_name_or_path", "{pipeline}/unet", "--num_epochs", "2", "--use_ema",
         "--ddpm_num_inference_steps", "2")),
    Row("research_projects/consistency_training/train_cm_ct_unconditional.py", pipelines.unconditional,
        (*UNCONDITIONAL, "--pretrained_model_name_or_path", "{pipeline}", "--max_train_steps", "4", "--use_ema",
         "--discretization_s_1", "20")),
    Row("research_projects/dreambooth_inpaint/train_dreambooth_inpaint.py", more.inpaint,
        (*INSTANCES, "--resolution", "64")),
    Row(f"{HUBER}/text_to_image/train_text_to_image.py", pipelines.stable_diffusion, (*IMAGES, "--use_ema")),
    Row(f"{HUBER}/text_to_image/train_text_to_image_lora.py", pipelines.stable_diffusion, IMAGES),
    Row(f"{HUBER}/text_to_image/train_text_to_image_sdxl.py", pipelines.sdxl, (*IMAGES, "--caption_column", "text")),
    Row(f"{HUBER}/text_to_image/train_text_to_image_lora_sdxl.py", pipelines.sdxl, IMAGES),
    Row(f"{HUBER}/dreambooth/train_dreambooth.py", pipelines.stable_diffusion, INSTANCES),
    Row(f"{HUBER}/dreambooth/train_dreambooth_lora.py", pipelines.stable_diffusion, INSTANCES),
    Row(f"{HUBER}/dreambooth/train_dreambooth_lora_sdxl.py", pipelines.sdxl, INSTANCES),
]  # fmt: skip
BY_PATH = {row.path: row for row in ROWS}


def write_conditioned(folder: Path) -> Path:
    """Save a data set with a picture, a caption, and a picture to condition on, under all the names scripts use."""
    pipelines.write_images(folder, captions=False)
    names = sorted(path.name for path in folder.glob("*.png"))
    lines = [
        {
            "file_name": name,
            "conditioning_image_file_name": other,
            "input_image_file_name": other,
            "edited_image_file_name": name,
            "edit_prompt": f"picture {name}",
            "text": f"picture {name}",
        }
        for name, other in zip(names, [*names[1:], names[0]])
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder
