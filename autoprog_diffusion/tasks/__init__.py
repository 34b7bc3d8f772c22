"""Training tasks: pipelines, objectives and settings for each kind of model that the recipes fine-tune. Needs the extra `recipes`."""

import os


# transformers prints advice about torchvision, which nothing here uses, each time a pipeline class is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
