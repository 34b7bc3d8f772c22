"""Fine-tuning a pretrained vision transformer by unfreezing it (AutoProg-Zero)."""
