"""The pretraining loop: arguments, data, augmentation, checkpoints, report."""
