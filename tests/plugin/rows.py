"""How every script of Diffusers that can run without a network is run: its tiny pipeline, data and flags."""

from __future__ import annotations

from . import latest_pipelines as latest
from . import more_pipelines as more
from . import pipelines
from .research_rows import RESEARCH
from .row import CONDITIONED, EDITED, IMAGES, INSTANCES, PAIRS, SHORT, Row


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
    Row("dreambooth/train_dreambooth_lora_flux2.py", latest.flux2, (*SHORT, "--text_encoder_out_layers", "1")),
    Row("dreambooth/train_dreambooth_lora_flux2_img2img.py", latest.flux2_deep, PAIRS),
    Row("dreambooth/train_dreambooth_lora_flux2_klein_img2img.py", latest.flux2_klein_deep, PAIRS),
    Row("dreambooth/train_dreambooth_lora_krea2.py", latest.krea2, SHORT),
    Row("dreambooth/train_dreambooth_lora_ideogram4.py", latest.ideogram4,
        (*INSTANCES, "--max_sequence_length", "64")),
    Row("dreambooth/train_dreambooth_lora_hidream.py", latest.hidream,
        (*SHORT, "--train_batch_size", "1", "--pretrained_tokenizer_4_name_or_path", "{pipeline}/tokenizer_4",
         "--pretrained_text_encoder_4_name_or_path", "{pipeline}/text_encoder_4")),
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
ROWS += RESEARCH
BY_PATH = {row.path: row for row in ROWS}
