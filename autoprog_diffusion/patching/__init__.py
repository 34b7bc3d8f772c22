"""Puts growth into a training script: reads Diffusers-style scripts, and adds the lines of `docs/integrate.md`."""
