"""Kinds of diffusion training: text to image, classes, flow matching, LoRA, DreamBooth. Needs the extra `recipes`."""

import os


# transformers prints advice about torchvision, which nothing here uses, each time a pipeline class is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
