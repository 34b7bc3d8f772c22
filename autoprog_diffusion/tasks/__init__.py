"""Training tasks: pipelines, objectives and settings of each kind of model. Needs the extra `recipes`."""

import os


# transformers prints advice about torchvision, which nothing here uses, each time a pipeline class is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
