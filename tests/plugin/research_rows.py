"""How the scripts for videos, for models in two parts and of the research projects are run."""

from __future__ import annotations

from . import more_pipelines as more
from . import pipelines
from . import prior_pipelines as prior
from . import video_pipelines as video
from .row import CONDITIONED, IMAGES, LATENT, MODEL, STEPS, Change, Row


RATE = ("--learning_rate", "1e-2")
CLIPS = (*MODEL, "--max_train_steps", "4", "--seed", "0", "--train_batch_size", "2", *RATE, "--lr_warmup_steps", "0",
         "--height", "16", "--width", "16", "--max_num_frames", "9", "--rank", "4", "--instance_data_root", "{videos}",
         "--caption_column", "prompts.txt", "--video_column", "videos.txt")  # fmt: skip
TWO_PARTS = ("--pretrained_decoder_model_name_or_path", "{pipeline}", "--pretrained_prior_model_name_or_path",
             "{pipeline}/prior_pipeline", *STEPS, "--train_data_dir", "{images}")  # fmt: skip
SHARDS = ("--train_shards_path_or_url", "{shards}/0.tar", "--max_train_samples", "8", "--dataloader_num_workers", "1",
          "--num_train_epochs", "4", "--resolution", "16")  # fmt: skip
PAIRS_OF_ONE = ("--resolution", "16", "--max_train_steps", "4", "--lr_warmup_steps", "0", "--seed", "0", *RATE)

IN_ORDER = Change(
    old="wds.shuffle(shuffle_buffer_size)",
    new="wds.shuffle(0)",
    why="webdataset shuffles by the clock: without, two runs of one script see the same pictures",
)
ON_THE_DEVICE = Change(
    old='text_encoding_pipeline.to("cuda")',
    new="text_encoding_pipeline.to(accelerator.device)",
    why="it moves the text encoder to CUDA, whatever there is",
)
MOVED = Change(
    old="from diffusers.pipelines.wuerstchen import",
    new="from diffusers.pipelines.deprecated.wuerstchen import",
    why="it imports a module from where Diffusers no longer has it",
)
EFFNET = Change(
    old='hf_hub_download("dome272/wuerstchen", filename="model_v2_stage_b.pt")',
    new='"{pipeline}/effnet.pt"',
    why="it downloads an image encoder by a name of its own",
)
BACKBONE = Change(
    old='weights="DEFAULT"',
    new="weights=None",
    why="its neighbour downloads weights of torchvision",
)
YARN = Change(
    old="Norod78/Yarn-art-style",
    new="{embedded}/images",
    why="the name of its data set is no flag",
)
GLIGEN = Change(
    old="masterful/gligen-1-4-generation-text-box",
    new="{pipeline}",
    why="the name of its pipeline is no flag",
)
ANIMATIONS = Change(
    old='f.endswith(".mp4")',
    new='f.endswith(".gif")',
    why="its videos are read by a package that is not here, animated pictures by Pillow",
)
AS_COLOURS = Change(
    old="frames = load_video(video_path)",
    new='frames = [frame.convert("RGB") for frame in load_video(video_path)]',
    why=ANIMATIONS.why,
)
PREFERENCES_IN_ORDER = Change(
    old=".shuffle(690,",
    new=".shuffle(0,",
    why=IN_ORDER.why,
)

DISTILLED = (*SHARDS, "--pretrained_teacher_model", "{pipeline}", "--max_train_steps", "4", "--seed", "0",
             "--train_batch_size", "2", *RATE, "--lr_warmup_steps", "0", "--num_ddim_timesteps", "10")  # fmt: skip

RESEARCH = [
    Row("cogvideo/train_cogvideox_lora.py", video.cogvideox, CLIPS, stand_ins=("decord",)),
    Row("cogvideo/train_cogvideox_image_to_video_lora.py", video.cogvideox_image_to_video, CLIPS,
        stand_ins=("decord",)),
    Row("cosmos/train_cosmos_predict25_lora.py", video.cosmos,
        (*MODEL, "--train_data_dir", "{animations}", "--seed", "0", "--train_batch_size", "2", "--num_train_epochs",
         "2", "--dataloader_num_workers", "0", "--height", "16", "--width", "16", "--num_frames", "9", *RATE,
         "--scheduler_warm_up_steps", "1", "--report_to", "comet_ml", "--mixed_precision", "bf16", "--lora_rank", "4",
         "--num_training_steps", "4"),
        resumes=False, changes=(ANIMATIONS, AS_COLOURS)),
    Row("cogview4-control/train_control_cogview4.py", prior.cogview4, CONDITIONED, changes=(ON_THE_DEVICE,)),
    Row("amused/train_amused.py", prior.amused,
        # TensorBoard takes no lists among the flags; a tracker that is not there is left out.
        (*LATENT, "--instance_data_dir", "{instances}", "--report_to", "comet_ml", "--use_ema")),
    Row("kandinsky2_2/text_to_image/train_text_to_image_decoder.py", prior.kandinsky, (*TWO_PARTS, "--use_ema")),
    Row("kandinsky2_2/text_to_image/train_text_to_image_prior.py", prior.kandinsky, (*TWO_PARTS, "--use_ema")),
    Row("research_projects/wuerstchen/text_to_image/train_text_to_image_prior.py", prior.wuerstchen,
        (*TWO_PARTS, "--resolution", "64"), changes=(MOVED, EFFNET, BACKBONE)),
    Row("research_projects/wuerstchen/text_to_image/train_text_to_image_lora_prior.py", prior.wuerstchen,
        (*TWO_PARTS, "--resolution", "64"), changes=(MOVED, EFFNET, BACKBONE)),
    Row("consistency_distillation/train_lcm_distill_sd_wds.py", pipelines.stable_diffusion, DISTILLED,
        changes=(IN_ORDER,)),
    Row("consistency_distillation/train_lcm_distill_sdxl_wds.py", prior.sdxl_of_published_widths, DISTILLED,
        changes=(IN_ORDER,)),
    Row("research_projects/controlnet/train_controlnet_webdataset.py", more.sdxl_eighths,
        (*MODEL, *SHARDS, "--eval_shards_path_or_url", "{shards}/0.tar", "--resolution", "64", "--max_train_steps",
         "4", "--seed", "0", "--train_batch_size", "2", *RATE, "--lr_warmup_steps", "0"),
        changes=(IN_ORDER,), stand_ins=("cv2",)),
    Row("research_projects/diffusion_orpo/train_diffusion_orpo_sdxl_lora.py", pipelines.sdxl,
        (*MODEL, *PAIRS_OF_ONE, "--train_batch_size", "2", "--dataset_name", "{preferences}/rows"),
        stand_ins=("wandb",)),
    Row("research_projects/diffusion_orpo/train_diffusion_orpo_sdxl_lora_wds.py", pipelines.sdxl,
        (*MODEL, *PAIRS_OF_ONE, "--per_gpu_batch_size", "2", "--global_batch_size", "2", "--num_train_examples", "8",
         "--dataset_path", "{preferences}/0.tar", "--num_train_epochs", "4", "--dataloader_num_workers", "1"),
        changes=(PREFERENCES_IN_ORDER,), stand_ins=("wandb",)),
    Row("research_projects/flux_lora_quantization/train_dreambooth_lora_flux_miniature.py", prior.flux_of_embeddings,
        (*LATENT, "--quantized_model_path", "{pipeline}", "--data_df_path",
         "{embedded}/flux.parquet"), changes=(YARN,)),
    Row("research_projects/sd3_lora_colab/train_dreambooth_lora_sd3_miniature.py", prior.sd3_of_embeddings,
        (*LATENT, "--data_df_path", "{embedded}/sd3.parquet", "--instance_data_dir", "{embedded}/images",
         "--instance_prompt", "a picture")),
    Row("research_projects/gligen/train_gligen_text.py", prior.gligen,
        (*STEPS, "--data_path", "{boxes}/boxes.pth", "--image_path", "{boxes}/images"), changes=(GLIGEN,)),
    Row("research_projects/lpl/train_sdxl_lpl.py", pipelines.sdxl,
        (*IMAGES, "--caption_column", "text", "--use_lpl", "--lpl_t_threshold", "1000", "--use_ema")),
    Row("research_projects/multi_subject_dreambooth/train_multi_subject_dreambooth.py", pipelines.stable_diffusion,
        (*LATENT, "--instance_data_dir", "{instances},{instances}", "--instance_prompt", "a picture,another")),
    Row("research_projects/multi_subject_dreambooth_inpainting/train_multi_subject_dreambooth_inpainting.py",
        more.inpaint,
        (*LATENT, "--resolution", "512", "--instance_data_dir", "{masked}", "--checkpointing_from", "0")),
]  # fmt: skip
