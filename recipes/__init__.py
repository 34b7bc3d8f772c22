"""Recipes are scripts; installed, they are `autoprog_diffusion.recipes`, which `autoprog-diffusion train` runs."""

if __name__ == "recipes":
    raise ModuleNotFoundError(
        "recipes/ holds scripts and is not importable: run them, for example "
        "`accelerate launch recipes/finetune_sd.py`. What they share is in autoprog_diffusion.training and "
        "autoprog_diffusion.tasks."
    )
