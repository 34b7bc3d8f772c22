"""Distribution backends: torch.distributed, DistributedDataParallel, FSDP2 and Accelerate."""
