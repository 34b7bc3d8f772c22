"""Classes of flags: every flag of every script says whether a resumed run may change it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal


FlagClass = Literal["must be equal", "applied", "extendable"]

# What is trained on what: another value would be another run. A flag that is in none of the lists counts as one.
MUST_BE_EQUAL = frozenset(
    # The model.
    "pretrained_model_name_or_path revision variant text_encoder_dtype vae_dtype "
    "model model_kwargs img_size drop_path genotype member "
    # The data, and the order in which they come.
    "train_data_dir dataset_name dataset_config_name image_column caption_column label_column max_train_samples "
    "train_data val_data val_fraction corrupt memory seed held_out held_out_share validation_data_dir "
    "train_batch_size batch_size gradient_accumulation_steps grad_accum_steps "
    "instance_data_dir instance_prompt with_prior_preservation class_data_dir class_prompt num_class_images "
    # Pixels.
    "buckets bucket_step max_aspect bucket_resolutions merge_buckets incomplete_batches shuffle_tags keep_tags "
    "resolution center_crop random_flip image_interpolation_mode cache_latents cache_dtype crop scale ratio hflip "
    "aa reprob mixup cutmix mixup_prob mixup_switch_prob aa_scale drop_path_scale reprob_scale "
    # The loss.
    "snr_gamma timestep_sampling noise_offset input_perturbation prediction_type prior_loss_weight smoothing "
    "weighting_scheme logit_mean logit_std mode_scale guidance max_sequence_length num_frames "
    "proportion_empty_prompts class_dropout keep_classes variance_loss "
    # What trains, in which precision, and its average.
    "rank lora_alpha lora_dropout target_modules use_dora init_lora_weights mixed_precision opt optimizer "
    "use_8bit_adam fused_optimizer compile trained_dtype step_in_backward average average_widths use_ema ema_decay "
    "model_ema_decay "
    # Growth.
    "growth growth_plan num_stages order min_trainable direction stage_embedding stage_embedding_init stage_dropout "
    "embedders_always rewarm_steps sweeps window_share window_state "
    "resolutions accumulations boundaries search search_objective search_cost search_orders search_batches min_depth "
    "min_resolution operator optimizer_state search_steps evaluations search_samples retokenization strides".split()
)

# What an optimizer reads anew in every step; what is written and looked at; how fast it runs.
APPLIED = frozenset(
    "learning_rate lr scale_lr lr_scheduler sched lr_warmup_steps warmup_steps warmup_epochs warmup_lr min_lr "
    "adam_beta1 adam_beta2 adam_weight_decay adam_epsilon weight_decay opt_betas opt_eps max_grad_norm clip_grad "
    "model_ema output_dir overwrite_output_dir resume_from_checkpoint checkpointing_steps checkpoints_total_limit "
    "validation_steps validation_prompts num_inference_steps guidance_scale log_interval report_to "
    "tracker_project_name logging_dir sample_batch_size "
    "cache_dir dataloader_num_workers workers gradient_checkpointing checkpointing memory_gb frozen_dtype "
    "offload_ema offload_optimizer foreach_ema allow_tf32 "
    "evaluation_share evaluation_steps stop_patience export probe_batch "
    "channels_last cpu_threads".split()
)

# How long the run is.
EXTENDABLE = frozenset("max_train_steps num_train_epochs epochs".split())

# Names of files and folders that a run reads, or of what lies on a hub: one place may be spelled in many ways.
PLACES = frozenset(
    "pretrained_model_name_or_path model train_data_dir dataset_name instance_data_dir class_data_dir train_data "
    "val_data growth_plan validation_data_dir".split()
)

# They say how this start begins: a line about them would repeat the command.
OF_THE_START = frozenset({"output_dir", "overwrite_output_dir", "resume_from_checkpoint"})
# What the scripts note beside their flags.
NO_FLAGS = frozenset({"given"})


def class_of(flag: str) -> FlagClass:
    """The class of a flag.

    Example:
        >>> class_of("seed"), class_of("learning_rate"), class_of("max_train_steps")
        ('must be equal', 'applied', 'extendable')
    """
    if flag in EXTENDABLE:
        return "extendable"
    return "applied" if flag in APPLIED else "must be equal"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], kind: FlagClass) -> dict[str, tuple[Any, Any]]:
    """Flag -> both values, for all flags of a class that differ; flags that the earlier run did not know are equal.

    Args:
        before: Flag -> value of the earlier run, as JSON reads it.
        now: The same of this one.
        kind: The class.
    """
    found = {}
    for name, value in now.items():
        old = before.get(name, value)
        if name not in NO_FLAGS and class_of(name) == kind and not _same(name, old, value):
            found[name] = (old, value)
    return found


def _same(flag: str, old: Any, new: Any) -> bool:
    """Whether two values of a flag mean the same; `images`, `images/` and its absolute path are one folder."""
    if old == new:
        return True
    named = flag in PLACES and isinstance(old, str) and isinstance(new, str)
    return named and os.path.realpath(old) == os.path.realpath(new)
