"""Plans a training run before it starts: memory, FLOPs and time of every stage, without a GPU or weights."""
