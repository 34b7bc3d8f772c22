"""Training of vision transformers: a trainer, arguments, presets, batches and augmentation."""
