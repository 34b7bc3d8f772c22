"""Recipes are scripts, not a package."""

raise ModuleNotFoundError(
    "recipes/ holds scripts and is not importable: run them, for example `accelerate launch recipes/finetune_sd.py`. "
    "What they share is in autoprog_diffusion.training and autoprog_diffusion.tasks."
)
