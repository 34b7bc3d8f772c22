"""Pretrain a vision transformer progressively: depth and resolution grow, by a fixed schedule or as a search decides.

    accelerate launch vit/pretrain.py --preset cpu --output_dir out

pretrains a small ViT on emoji of two styles, in 24 classes, in under 5 minutes on an idle CPU core.
Larger models, your data:

    accelerate launch vit/pretrain.py --preset deit_small --train_data imagenet --output_dir out

where imagenet/train and imagenet/val hold a folder per class; other presets are deit_tiny, deit_base, volo_d1 and
volo_d2. `--help` lists every flag; they carry timm's names, and win over the preset's. `--growth off` is ordinary
training in the same loop. Results: a checkpoint of the model's own library (timm or transformers) in the output
folder, timeline.png, growth.json (plan, decisions, measurements) and one printed table.
"""

from __future__ import annotations

import sys

# By its installed name: a script that lies in a package has no relative imports.
from autoprog_diffusion.training.run import main
from autoprog_diffusion.vit.training.pretraining import Pretraining  # pyright: ignore[reportMissingImports]


if __name__ == "__main__":
    main(Pretraining(), sys.argv[1:], __doc__)
