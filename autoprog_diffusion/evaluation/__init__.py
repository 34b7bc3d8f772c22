"""Held-out loss: fixed images, noise and timesteps; the best weights by it, and when to stop.

    from autoprog_diffusion.evaluation.held_out import HeldOut

Imports torch alone; an accelerator, an average and a growth object are known by their members.
"""
