"""The training room of recipes and vit: trainer, run, arguments, metrics, report and checkpoints."""
