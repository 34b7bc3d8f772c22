"""What every training loop here shares: checkpoints, output folder, memory and FLOPs of a step, the default data."""
