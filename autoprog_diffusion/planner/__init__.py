"""What a training run takes, before it runs: memory, FLOPs and time of every stage, without a GPU or weights."""
